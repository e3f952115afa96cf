"""What tests of ingests ask for, and progress that remembers what it was told."""

import json
from pathlib import Path
from typing import Any

from ingest.progress import Silence
from ingest.request import IngestRequest


class Notes(Silence):
    """Remembers what was noted, and counts steps."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.total = self.done = 0

    def note(self, text: str) -> None:
        self.noted.append(text)

    def steps(self, _text: str, total: int) -> None:
        self.total = total

    def advance(self) -> None:
        self.done += 1


def on_relations(model: Path, relations: Path, **options: Any) -> IngestRequest:
    """These relations alone: of the shipped ones the tiny model knows no word."""
    return IngestRequest(
        model=str(model), suites=("relations",), relations=str(relations), only=True, **options
    )


def on_probe(model: Path, probe: Path, **options: Any) -> IngestRequest:
    """Attention patterns on this probe alone."""
    return IngestRequest(
        model=str(model), suites=("patterns",), probe=str(probe), only=True, **options
    )


def write(path: Path, *lines: object) -> Path:
    """A file of lines: texts as they are, all else as JSON."""
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path
