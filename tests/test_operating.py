"""docs/operating.md: what it tells to type exists."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from test_compose import SECRETS, compose

from catalog.settings import Settings
from ingest.service import metrics
from ui.cli.main import app

DOCUMENT = Path(__file__).parents[1] / "docs" / "operating.md"
TEXT = DOCUMENT.read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def _commands() -> Iterator[str]:
    """All commands of ours, in blocks and in sentences."""
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    for text in [*lines, *re.findall(r"`([^`\n]+)`", TEXT)]:
        if found := re.search(r"(?:^|[ =])(heads (?!\w+\.)[a-z].*)", text):
            yield found[1]


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_every_command_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    while commands := getattr(group, "commands", None):
        if not words or words[0] not in commands:
            break
        group = commands[words.pop(0)]
    assert group is not typer.main.get_command(app)
    assert group.name != "heads"
    known = {option for parameter in group.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known, command


def test_every_variable_exists() -> None:
    for name in set(re.findall(r"HEADS_([A-Z_]+[A-Z])", TEXT)):
        in_compose = f"HEADS_{name}" in (DOCUMENT.parents[1] / "docker-compose.yml").read_text()
        assert name.lower() in Settings.model_fields or in_compose, name


def test_every_metric_exists() -> None:
    source = Path(metrics.__file__).read_text()
    for name in set(re.findall(r"heads_(?!reader)[a-z_]+[a-z]", TEXT)):
        assert name.removesuffix("_total") in source, name


def test_the_second_file_is_what_compose_reads(tmp_path: Path) -> None:
    (tmp_path / "lan.yml").write_text(_blocks("yaml")[0])
    files = ("--file", "docker-compose.yml", "--file", str(tmp_path / "lan.yml"))
    done = compose(*files, "--profile", "gpu", "config")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    published = {
        name: [(port["host_ip"], port["target"]) for port in one["ports"]]
        for name, one in services.items()
        if "ports" in one
    }
    assert published == {
        "page": [("127.0.0.1", 8501)],
        "postgres": [("10.0.0.1", 5432)],
        "valkey": [("10.0.0.1", 6379)],
    }


def test_alerts_are_lists_of_rules() -> None:
    rules = yaml.safe_load(_blocks("yaml")[1])
    assert all({"alert", "expr"} <= set(rule) for rule in rules)


def test_passwords_are_made_as_it_says(tmp_path: Path) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("$ for name in")]
    subprocess.run(["sh", "-c", line.removeprefix("$ ")], cwd=tmp_path, check=True)
    made = dict(one.split("=") for one in (tmp_path / ".env").read_text().splitlines())
    assert set(made) == set(SECRETS) - {"HF_TOKEN"}
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in made.values())
    assert (
        compose("--env-file", str(tmp_path / ".env"), "config", "-q", environment={}).returncode
        == 0
    )
