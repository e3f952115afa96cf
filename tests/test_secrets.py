"""Passwords and tokens: they reach servers, and nothing that people or logs see."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import commands
import psycopg
import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

import catalog
from catalog import Catalog, Settings
from catalog.database import Database
from catalog.errors import UsageError
from catalog.jobs import open_store
from catalog.urls import shown
from ingest.request import IngestRequest
from ingest.service.app import broker_name, celery_app
from ingest.service.submit import submit

SECRET = "s3cretword"  # noqa: S105 - it is none


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:s3cretword@host:6379/0", "redis://:***@host:6379/0"),
        ("amqp://me:s3cretword@host//", "amqp://me:***@host//"),
        (
            "postgresql://me@host/x?password=s3cretword&a=b",
            "postgresql://me@host/x?password=***&a=b",
        ),
        ("postgresql://me:a@s3cretword@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a/s3cretword@host/x", "postgresql://me:***@host/x"),
        ("postgresql:me:s3cretword@host", "***@host"),
        ("duckdb:////data/heads.duckdb", "duckdb:////data/heads.duckdb"),
        ("filesystem:///a@b/c", "filesystem:///a@b/c"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, expected: str) -> None:
    assert shown(url) == expected


@given(before=st.text("/@:?%"), after=st.text("/@:?%"))
def test_no_character_of_a_password_lets_it_out(before: str, after: str) -> None:
    assert SECRET not in shown(f"postgresql://me:{before}{SECRET}{after}@host/heads")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@host:port/heads",
        f"postgresql://me:a@{SECRET}@host/heads",
        f"mysql://me:{SECRET}@host/heads",
        f"postgresql//me:{SECRET}@host/heads",
    ],
)
def test_a_url_that_is_refused_keeps_its_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Database(url, lock_timeout=0)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{SECRET}@host/heads", f"postgresql://host/heads?password={SECRET}"]
)
def test_a_database_is_named_without_its_password(url: str) -> None:
    database = Database(url, lock_timeout=0)
    assert SECRET not in f"{database.name} {database!r}"


# Processes, with everything wrong that operators get wrong

Heads = Callable[..., str]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """Runs a command until it ends, or is told to when it is seen to have done enough."""

    def run(
        *arguments: str, is_enough: Callable[[str], bool] | None = None, **environment: str
    ) -> str:
        surroundings = os.environ | {
            "HF_TOKEN": f"hf_{SECRET}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{servers.free_port()}",
            "HEADS_DEBUG": "1",
            "HEADS_READER_PASSWORD": SECRET,
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        if is_enough is None:
            done = commands.run(arguments, env=surroundings)
            return done.stdout + done.stderr
        said = tmp_path / uuid.uuid4().hex
        with said.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ui.cli", *arguments],
                env=surroundings,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + 240
        while process.poll() is None and not is_enough(said.read_text()):
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.2)
        process.terminate()
        process.wait(60)
        told = said.read_text()
        assert told
        return told

    return run


@pytest.fixture(scope="module")
def closed_server() -> Iterator[str]:
    """The URL of a database, with a password that is not its role's."""
    with servers.postgresql() as server:
        where = f"user=postgres host={server.socket} port={server.port}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute("CREATE ROLE heads LOGIN PASSWORD 'another'")
            (server.socket / "data" / "pg_hba.conf").write_text(
                "local all all trust\nhost all all all scram-sha-256\n"
            )
            connection.execute("SELECT pg_reload_conf()")
        yield f"postgresql://heads:{SECRET}@{servers.HOST}:{server.port}/postgres"


@pytest.mark.parametrize(
    "command",
    [
        "worker --device cpu --log-format json",
        "scheduler",
        "doctor",
        "jobs",
        "db upgrade",
        "db reader someone",
        "ingest lab/none --queue",
        "models",
    ],
)
def test_a_wrong_password_is_not_repeated(heads: Heads, closed_server: str, command: str) -> None:
    broker = f"redis://:{SECRET}@{servers.HOST}:{servers.free_port()}/0"
    told = heads(*command.split(), HEADS_DATABASE_URL=closed_server, HEADS_BROKER_URL=broker)
    assert "password authentication failed" in told
    assert SECRET not in told


def test_a_broker_that_is_away_is_named_without_its_password(heads: Heads, duckdb_url: str) -> None:
    """By none of those who look for it, for as long as they go on looking, all at once."""
    one = catalog.connect(duckdb_url, create=True)
    asked = [
        ((command, enough), f"{scheme}{SECRET}@{servers.HOST}:{servers.free_port()}/0")
        for command, enough in (
            ("ingest lab/none --suite weights --queue", None),
            ("doctor broker", None),
            ("worker --device cpu", "Cannot connect"),
            ("scheduler --log-format json", "leads"),
        )
        for scheme in ("redis://:", "amqp://me:")
    ]

    def run(asked: tuple[tuple[str, str | None], str]) -> str:
        (command, enough), broker = asked
        return heads(
            *command.split(),
            is_enough=enough and (lambda text: enough in text),
            HEADS_DATABASE_URL=duckdb_url,
            HEADS_BROKER_URL=broker,
        )

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(run, asked))
    # Of two who queue the same, the second has nothing to send.
    assert any("127.0.0.1" in text for text in told[:2])
    assert ["127.0.0.1" in text for text in told[2:6]] == [True] * 4
    assert not [text for text in told if SECRET in text]
    assert SECRET not in _rows(one)


def test_a_job_that_fails_keeps_no_token(heads: Heads, duckdb_url: str) -> None:
    one = catalog.connect(duckdb_url, create=True)
    (queued,) = submit(one, IngestRequest(model="lab/none", suites=("weights",)))
    store = open_store(one.database)
    told = heads(
        "worker",
        "--device",
        "cpu",
        "--queues",
        "cpu",
        HEADS_DATABASE_URL=duckdb_url,
        is_enough=lambda _: store.get(queued.job.id).is_over,
    )
    job = store.get(queued.job.id)
    assert job.state == "failed"
    assert job.error
    assert SECRET not in told + _rows(one)


def _rows(one: Catalog) -> str:
    """All that a catalog and its job store say of runs and jobs."""
    store = open_store(one.database)
    jobs = store.list()
    return " ".join(
        [
            *(str(row) for row in one.sql("SELECT * FROM runs")),
            *(str(vars(job)) for job in jobs),
            *(str(vars(event)) for job in jobs for event in store.log(job.id)),
            *(str(vars(worker)) for worker in store.workers()),
        ]
    )


def test_nothing_shows_a_secret_when_it_is_printed(
    duckdb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://me:{SECRET}@host/heads"
    monkeypatch.setenv("HEADS_DATABASE_URL", url)
    monkeypatch.setenv("HEADS_BROKER_URL", f"redis://:{SECRET}@host/0")
    monkeypatch.setenv("HEADS_READER_PASSWORD", SECRET)
    app = celery_app(Database(url, lock_timeout=0))
    one = catalog.connect(duckdb_url, create=True)
    shown_all = (
        repr(Settings()),
        str(Settings()),
        repr(app),
        app.conf.humanize(with_defaults=True, censored=True),
        app.bugreport(),
        broker_name(app),
        repr(app.connection_for_read()),
        repr(one),
        repr(open_store(one.database)),
        repr(Database(url, lock_timeout=0)._engine(writable=True)),
    )
    assert not [text for text in shown_all if SECRET in text]
