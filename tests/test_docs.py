"""What the documents promise."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ui.cli.main import app

ROOT = Path(__file__).parents[1]


def _commands(group: typer.Typer, *before: str) -> Iterator[tuple[str, str]]:
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.rstrip("_")
        yield " ".join([*before, name]), command.callback.__doc__ or ""
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from _commands(sub.typer_instance, *before, str(sub.name))


COMMANDS = dict(_commands(app))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(command: str) -> None:
    assert f"Example: heads {command}" in COMMANDS[command]
    assert f"heads {command}" in (ROOT / "README.md").read_text()


def test_the_readme_names_the_two_commands_and_every_view() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^make demo", readme, re.MULTILINE)
    assert re.search(r"^make test", readme, re.MULTILINE)
    for view in (
        "models",
        "heads",
        "metrics",
        "scores",
        "labels",
        "taxonomies",
        "runs",
        "probes",
        "relations",
    ):
        assert f"| `{view}` |" in readme


def test_nothing_names_this_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    pattern = re.compile(r"/work/|/root/|pypi\.org|pythonhosted|npmjs|deb\.debian")
    for name in filter(None, listed):
        path = ROOT / name
        if path == Path(__file__) or path.suffix == ".png" or not path.is_file():
            continue
        assert not pattern.search(path.read_text(encoding="utf-8")), name
