"""What is broken around jobs is compared with: real services, and what one clean run publishes.

Leases are seconds here, not the half a minute of a working day.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import servers
import tiny
import torch
import workers
from workers import Heads, Service

import catalog
from catalog.jobs import Job
from ingest.request import IngestRequest
from ingest.run import ingest
from ingest.service.submit import submit

LEASE = 5.0
"""Seconds."""

Rows = dict[str, list[str]]
Clean = Callable[[Sequence[IngestRequest]], Rows]


@dataclass(frozen=True)
class Inputs:
    """A model and a probe that take seconds: time to be hit in the middle."""

    model: Path
    probe: Path

    def patterns(self) -> IngestRequest:
        return IngestRequest(
            model=str(self.model),
            suites=("patterns",),
            probe=str(self.probe),
            only=True,
            device="cpu",
        )

    def weights(self) -> IngestRequest:
        return IngestRequest(model=str(self.model), suites=("weights",), device="cpu")

    def many(self, folder: Path, n_models: int) -> list[IngestRequest]:
        """Four jobs on each of some small models of different architectures."""
        names = ("llama", "gpt2", "qwen3", "opt", "olmo2")[:n_models]
        models = [tiny.save(folder / name, name) for name in names]
        words, lines = str(tiny.relations(folder / "words")), str(self.probe)
        return [
            IngestRequest(
                model=str(model),
                suites=(suite,),
                relations=words if suite == "relations" else None,
                probe=lines if suite == "patterns" else None,
                only=suite in {"relations", "patterns"},
                device="cpu",
            )
            for model in models
            for suite in ("relations", "weights", "salient", "patterns")
        ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.CONFIGS, "llama", tiny.CONFIGS["llama"] | {"num_hidden_layers": 12})
        model = tiny.save(folder / "deep", "llama")
    return Inputs(model, _probe(folder / "long.jsonl", 80))


def _probe(path: Path, n_lines: int) -> Path:
    """Each line of another length: they are measured one by one, and counted."""
    generator = torch.Generator().manual_seed(7)
    lines = [
        torch.randint(3, tiny.VOCABULARY, (length,), generator=generator).tolist()
        for length in range(80, 80 + n_lines)
    ]
    path.write_text("\n".join(json.dumps({"tokens": line}) for line in lines))
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """What a catalog shows after these requests, ingested here and without a fault."""
    known: dict[tuple[IngestRequest, ...], Rows] = {}

    def run(requests: Sequence[IngestRequest]) -> Rows:
        if (key := tuple(requests)) not in known:
            folder = tmp_path_factory.mktemp("clean")
            one = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
            # As many threads as workers have: sums of another order have other last bits.
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for request in requests:
                ingest(one, request)
            torch.set_num_threads(threads)
            known[key] = workers.published(one)
        return known[key]

    return run


@pytest.fixture(scope="module")
def postgres() -> Iterator[servers.PostgreSQL]:
    """A server of these tests' own: they kill it."""
    with servers.postgresql() as server:
        yield server


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[servers.Valkey]:
    with servers.valkey(tmp_path / "valkey") as server:
        yield server


Serve = Callable[..., contextlib.AbstractContextManager[Service]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A service on a new catalog, which workers may reach by another way than this process."""

    def start(
        url: str, broker: str | None, *, workers_url: str = "", workers_broker: str = ""
    ) -> contextlib.AbstractContextManager[Service]:
        if broker:
            monkeypatch.setenv("HEADS_BROKER_URL", broker)
        environment = {
            "HEADS_DATABASE_URL": workers_url or url,
            "HEADS_WORK_DIR": str(tmp_path / "work"),
            "HEADS_LEASE": str(LEASE),
        }
        if broker:
            environment["HEADS_BROKER_URL"] = workers_broker or broker
        return workers.service(catalog.connect(url, create=True), tmp_path, environment)

    return start


@pytest.fixture
def on_servers(
    serve: Serve, postgres: servers.PostgreSQL, valkey: servers.Valkey
) -> Iterator[Service]:
    url = servers.over_tcp(postgres.new_database(), postgres.port)
    with serve(url, valkey.url) as one:
        yield one


@pytest.fixture
def embedded(serve: Serve, duckdb_url: str) -> Iterator[Service]:
    with serve(duckdb_url, None) as one:
        yield one


@pytest.fixture(params=["on_servers", "embedded"])
def anywhere(request: pytest.FixtureRequest) -> Service:
    """A service on PostgreSQL and Valkey, and one with nothing but the package."""
    one: Service = request.getfixturevalue(request.param)
    return one


def queue(on: Service, request: IngestRequest) -> int:
    (submitted,) = submit(on.catalog, request)
    assert submitted.is_new
    return submitted.job.id


def require_clean(on: Service, expected: Rows) -> None:
    """The catalog as after a clean run, row for row, and nobody who claims to work."""
    found = workers.published(on.catalog)
    assert found.keys() == expected.keys()
    for view, rows in expected.items():
        assert found[view] == rows, view
    assert workers.orphans(on.catalog) == []
    assert on.store.list(states=("queued", "running")) == []


def outcomes(on: Service) -> list[str]:
    """How runs ended, in the order in which they began."""
    return [row["status"] for row in on.catalog.sql("SELECT status FROM runs ORDER BY run_id")]


def require_second_attempt(on: Service, job: Job, expected: Rows) -> Job:
    """The job is begun once more, and the catalog ends as after one clean run."""
    (done,) = on.finish([job.id])
    assert (done.state, done.attempt) == ("succeeded", 2)
    require_clean(on, expected)
    assert outcomes(on) == ["failed", "succeeded"]
    return done


def held_by_one_of_two(on: Service, request: IngestRequest) -> tuple[Job, Heads]:
    """A job in the middle of its steps beside an idle worker and a scheduler, and who has it."""
    on.scheduler()
    pool = {name: on.worker(name) for name in ("a", "b")}
    job = on.measuring(queue(on, request))
    return job, pool[str(job.worker)]


def pause_between_writes(on: Service, one: Heads) -> None:
    """Freeze it while it writes no job: what has a file of one machine locked keeps all others out.

    On a server it may be frozen anywhere.
    """
    one.pause()
    while on.store.database.path and not _is_free(on.store.database.path):
        one.resume()
        time.sleep(0.05)
        one.pause()


def _is_free(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


@contextlib.contextmanager
def publishing_held(on: Service, at: str) -> Iterator[Callable[[], bool | None]]:
    """Let publications of the runs under way come to a statement, and no further.

    Args:
        on: A service on PostgreSQL.
        at: `COPY`, when the scores are sent, or `UPDATE run`, near the end.

    Yields:
        What tells that one is there.
    """
    hold = {
        "COPY": "LOCK TABLE score IN SHARE MODE",
        "UPDATE run": "SELECT id FROM run FOR UPDATE",
    }[at]
    where = on.catalog.database.url.set(drivername="postgresql").render_as_string()
    # Two, since one transaction sees the same activity all along.
    with psycopg.connect(where) as holding, psycopg.connect(where, autocommit=True) as looking:
        holding.execute(hold)

        def is_held() -> bool | None:
            found = looking.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND starts_with(query, %s)",
                [at],
            )
            return True if found.fetchone() else None

        yield is_held
