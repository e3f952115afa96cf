"""The arrows between the packages, held by import-linter and by fresh interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_declared_arrows_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("catalog", "torch transformers celery streamlit altair pandas ingest ui"),
        ("ui.cli.main", "torch transformers celery streamlit altair pandas vl_convert"),
        ("ingest", "torch sqlalchemy catalog"),
        ("ingest.classify", "torch transformers"),
        ("ingest.metrics", "sqlalchemy duckdb catalog transformers streamlit"),
        ("ingest.service.submit", "torch transformers streamlit ui"),
        ("ingest.service.worker", "torch transformers streamlit ui"),
        ("ingest.service.scheduler", "torch transformers streamlit ui"),
        ("ui.charts", "torch transformers streamlit ingest"),
    ],
)
def test_importing_one_room_does_not_open_another(module: str, absent: str) -> None:
    program = f"import sys, {module}; print(*[m for m in {absent.split()} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_the_top_level_is_what_it_shall_be() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {Path(name).parts[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} == {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Dockerfile",
        "LICENSE",
        "Makefile",
        "README.md",
        "benchmarks",
        "catalog",
        "constraints.txt",
        "docker-compose.yml",
        "docs",
        "ingest",
        "migrations",
        "pyproject.toml",
        "tests",
        "ui",
    }
