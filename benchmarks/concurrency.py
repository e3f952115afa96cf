"""Two ingests, a reader and SQL on one DuckDB file: `python -m benchmarks.concurrency`.

Four processes for two minutes, as a lab's machine has them: ingests of tiny models that begin and
publish without pause, a reader as a page is one, and connections that ask once as `heads sql` does.
Each reports how long it waited for the file, and what went wrong.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from sqlalchemy import Connection
from transformers import LlamaConfig

import catalog
from benchmarks import _checkpoint
from catalog import Catalog
from catalog.database import Database
from ingest.request import IngestRequest
from ingest.run import ingest

ROLES = ("ingest-1", "ingest-2", "reader", "sql")
TINY = LlamaConfig(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
)
PAUSE = 0.05
"""Seconds between two questions of a page that somebody uses."""


class Timed(Database):
    """Remembers how long it took to have the file."""

    def __init__(self, url: str, *, lock_timeout: float) -> None:
        super().__init__(url, lock_timeout=lock_timeout)
        self.waits: dict[bool, list[float]] = {False: [], True: []}

    @contextmanager
    def _connect(self, *, writable: bool, patience: float | None = None) -> Iterator[Connection]:
        begun = time.monotonic()
        with super()._connect(writable=writable, patience=patience) as connection:
            self.waits[writable].append(time.monotonic() - begun)
            yield connection


@dataclass
class Told:
    """What one process did."""

    role: str
    rounds: int = 0
    errors: list[str] = field(default_factory=list)
    read_waits: list[float] = field(default_factory=list)
    write_waits: list[float] = field(default_factory=list)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--seconds", type=float, default=120.0)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--role", choices=ROLES)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.role:
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(asdict(_play(given.role, given.folder, given.seconds))))
        return
    with tempfile.TemporaryDirectory(prefix="heads-") as folder:
        told = _together(Path(folder), given.seconds)
    if given.json:
        print(json.dumps([asdict(one) for one in told]))
    else:
        _print(told)
    sys.exit(any(one.errors for one in told))


def _together(folder: Path, seconds: float) -> list[Told]:
    catalog.connect(_url(folder), create=True)
    for role in ROLES[:2]:
        _checkpoint.write(folder / role, TINY, is_real=lambda _: True)
    playing = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.concurrency", "--role", role),
                *("--folder", str(folder), "--seconds", str(seconds)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ROLES
    ]
    for process in playing:  # none measures while another still imports torch
        assert process.stdout is not None  # noqa: S101 - narrows the type
        process.stdout.readline()
    told = []
    for process in playing:
        assert process.stdin is not None  # noqa: S101 - narrows the type
        process.stdin.write("go\n")
        process.stdin.flush()
    for role, process in zip(ROLES, playing, strict=True):
        out, _ = process.communicate()
        died = Told(role, errors=[f"exit code {process.returncode}"])
        told.append(died if process.returncode else Told(**json.loads(out.splitlines()[-1])))
    return told


def _play(role: str, folder: Path, seconds: float) -> Told:
    told = Told(role)
    database = Timed(_url(folder), lock_timeout=30.0)
    one = Catalog(database)
    rounds: dict[str, Callable[[], object]] = {
        "reader": lambda: _look(one),
        "sql": lambda: catalog.connect(_url(folder)).sql("SELECT count(*) FROM score_runs"),
    }
    do = rounds.get(role, lambda: _measure(one, folder / role))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        try:
            do()
        except Exception as error:  # noqa: BLE001 - counted and told
            told.errors.append(f"{type(error).__name__}: {error}")
        told.rounds += 1
        if role == "sql":  # its connections are its own: from asking to the answer
            told.read_waits.append(time.monotonic() - begun)
        if role in rounds:
            time.sleep(PAUSE)
    told.read_waits += database.waits[False]
    told.write_waits += database.waits[True]
    return told


def _look(one: Catalog) -> None:
    """What a page asks; every head of a published run has its score, or none has."""
    one.sql("SELECT * FROM models")
    counts = one.sql("SELECT model, metric, probe, count(*) AS n FROM scores GROUP BY 1, 2, 3")
    heads = TINY.num_hidden_layers * TINY.num_attention_heads
    halves = [row for row in counts if row["n"] != heads]
    if halves:
        raise ValueError(f"half a run was seen: {halves[0]}")


def _measure(one: Catalog, checkpoint: Path) -> None:
    ingest(one, IngestRequest(model=str(checkpoint), suites=("weights",), force=True))


def _url(folder: Path) -> str:
    return f"duckdb:///{folder / 'heads.duckdb'}"


def _print(told: list[Told]) -> None:
    print(f"{'process':10} {'rounds':>7} {'errors':>7}   seconds of waiting to")
    for one in told:
        print(f"{one.role:10} {one.rounds:7} {len(one.errors):7}")
        for kind, waits in (("read", one.read_waits), ("write", one.write_waits)):
            if waits:
                print(f"{'':27} {kind:6} {_spread(waits)}")
        for error in one.errors[:3]:
            print(f"{'':27} {error}")


def _spread(waits: list[float]) -> str:
    cuts: list[Any] = quantiles(waits, n=100, method="inclusive") if len(waits) > 1 else waits * 99
    return (
        f"p50 {cuts[49]:.3f}  p95 {cuts[94]:.3f}  p99 {cuts[98]:.3f}  max {max(waits):.3f}  "
        f"({len(waits)} times)"
    )


if __name__ == "__main__":
    main()
