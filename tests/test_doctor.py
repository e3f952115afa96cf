"""`heads doctor`: what is well, what is not, and what to do; without changing or telling more."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import gethostname

import commands
import pytest
import redis
import servers

import catalog
from catalog.database import Database
from catalog.errors import SchemaError
from catalog.jobs import Job, JobSpec, JobStore, Worker, open_store
from catalog.jobs import schema as jobs_schema

SECRET = "s3cretword"  # noqa: S105 - it is none
Doctor = Callable[..., tuple[int, dict[str, list[dict[str, str]]]]]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs the command; gives its exit code and its findings by check."""

    def run(*arguments: str, **environment: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
        inherited = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        done = commands.run(
            ["doctor", *arguments, "--format", "json"],
            env=inherited | {"HF_HOME": str(tmp_path / "hub")} | environment,
        )
        assert SECRET not in done.stdout + done.stderr
        assert done.stdout, done.stderr
        found: dict[str, list[dict[str, str]]] = {}
        for one in json.loads(done.stdout):
            found.setdefault(one["check"], []).append(one)
        return done.returncode, found

    return run


@pytest.fixture
def store(duckdb_url: str) -> JobStore:
    catalog.connect(duckdb_url, create=True)
    return open_store(Database(duckdb_url, lock_timeout=30))


def levels(found: list[dict[str, str]]) -> list[str]:
    return [one["level"] for one in found]


def _queue(store: JobStore, queue: str = "gpu") -> Job:
    return store.submit(JobSpec(model="m", suite="weights", request={}, queue=queue, key=queue)).job


def _beat(store: JobStore, name: str, queue: str, host: str = "elsewhere") -> None:
    store.worker_beat(
        Worker(name=name, host=host, pid=1, queues=[queue], device="cpu", memory=1, facts={})
    )


def test_where_there_is_nothing_it_says_so_and_leaves_nothing(
    doctor: Doctor, tmp_path: Path
) -> None:
    code, found = doctor("--db", f"duckdb:///{tmp_path / 'heads.duckdb'}")
    assert code == 1
    assert levels(found["database"]) == ["fail"]
    assert "heads db upgrade" in found["database"][0]["what"]
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_catalog_without_service_is_well(doctor: Doctor, duckdb_url: str) -> None:
    catalog.connect(duckdb_url, create=True)
    code, found = doctor("--db", duckdb_url)
    assert code == 0
    assert set(found) >= {"packages", "jobs", "broker", "disk", "memory", "gpu", "hub"}
    assert levels(found["database"]) == ["ok"]
    assert levels(found["workers"]) == levels(found["scheduler"]) == ["warn"]
    assert all(one["remedy"] for each in found.values() for one in each if one["level"] != "ok")
    assert doctor("scheduler", "--strict", "--db", duckdb_url)[0] == 1
    assert list(doctor("scheduler", "--db", duckdb_url)[1]) == ["scheduler"]


def test_jobs_that_nobody_will_take_are_failures(
    doctor: Doctor, store: JobStore, duckdb_url: str
) -> None:
    job = _queue(store)
    _beat(store, "w", "cpu")
    code, found = doctor("workers", "scheduler", "jobs", "--db", duckdb_url)
    assert code == 1
    assert levels(found["workers"]) == ["ok", "fail"]
    assert f"job {job.id} in the queue gpu" in found["workers"][1]["what"]
    assert found["workers"][1]["remedy"] == "start `heads worker --queues gpu`"
    assert levels(found["scheduler"]) == ["fail"]
    assert "1 queued" in found["jobs"][0]["what"]
    _beat(store, "w", "gpu")
    assert store.lead("scheduler", "me", 60)
    code, found = doctor("workers", "scheduler", "--strict", "--db", duckdb_url)
    assert (code, levels(found["workers"]), levels(found["scheduler"])) == (0, ["ok"], ["ok"])


def test_only_workers_that_live_and_are_here_count_where_asked(
    doctor: Doctor, store: JobStore, duckdb_url: str
) -> None:
    _beat(store, "far", "gpu")
    here = ("workers", "--here", "--db", duckdb_url)
    assert doctor(*here)[0] == 1
    _beat(store, "near", "cpu", gethostname())
    _queue(store)
    code, found = doctor(*here)
    assert (code, levels(found["workers"])) == (0, ["ok"])
    with store._writing() as session:
        worker = session.get_one(Worker, "near")
        worker.heartbeat_at -= timedelta(seconds=61)
    code, found = doctor(*here)
    assert (code, levels(found["workers"])) == (1, ["warn", "fail"])


def test_failed_and_abandoned_jobs_are_named(
    doctor: Doctor, store: JobStore, duckdb_url: str
) -> None:
    failed, left = _queue(store, "a"), _queue(store, "b")
    held = store.claim(failed.id, worker="w", lease_seconds=60)
    assert held is not None
    assert held.lease_token is not None
    store.fail(failed.id, held.lease_token, "ModelError: no such model")
    store.claim(left.id, worker="w", lease_seconds=-1)
    code, found = doctor("jobs", "--db", duckdb_url)
    assert (code, levels(found["jobs"])) == (0, ["ok", "warn", "warn"])
    assert f"job {left.id}:" in found["jobs"][1]["what"]
    assert f"`heads jobs show {failed.id}`" in found["jobs"][2]["remedy"]


def test_a_broker_up_down_and_closed(doctor: Doctor, duckdb_url: str, tmp_path: Path) -> None:
    catalog.connect(duckdb_url, create=True)
    (tmp_path / "valkey").mkdir()
    with servers.valkey(tmp_path / "valkey") as broker:
        code, found = doctor("broker", "--db", duckdb_url, HEADS_BROKER_URL=broker.url)
        assert (code, levels(found["broker"])) == (0, ["ok"])
        redis.Redis.from_url(broker.url).config_set("requirepass", "another")
        wrong = broker.url.replace("//", f"//:{SECRET}@")
        code, found = doctor("broker", "--db", duckdb_url, HEADS_BROKER_URL=wrong)
        assert (code, levels(found["broker"])) == (1, ["fail"])
    for url in (wrong, f"amqp://me:{SECRET}@127.0.0.1:{broker.port}//"):
        code, found = doctor("broker", "--db", duckdb_url, HEADS_BROKER_URL=url)
        assert (code, levels(found["broker"])) == (1, ["fail"])
        assert "cannot be reached" in found["broker"][0]["what"]
        assert "HEADS_BROKER_URL" in found["broker"][0]["remedy"]


def test_a_server_that_is_away_or_empty(doctor: Doctor, new_postgresql_url: str) -> None:
    away = f"postgresql://me:{SECRET}@127.0.0.1:{servers.free_port()}/heads"
    code, found = doctor("--db", away)
    assert code == 1
    assert levels(found["database"]) == levels(found["jobs"]) == ["fail"]
    assert found["hub"]
    code, found = doctor("database", "jobs", "--db", new_postgresql_url)
    assert (code, levels(found["database"])) == (1, ["fail"])
    assert "heads db upgrade" in found["database"][0]["what"]


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/api/whoami-v2"
        known = {f"Bearer {SECRET}": 200, "Bearer busy": 429}
        self.send_response(known.get(self.headers["Authorization"], 401))
        self.end_headers()
        self.wfile.write(json.dumps({"type": "user", "name": "lab"}).encode())

    def log_message(self, *_: object) -> None: ...


@contextmanager
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_hub_s_token(doctor: Doctor, duckdb_url: str) -> None:
    def told(**environment: str) -> tuple[int, str, str]:
        code, found = doctor("hub", "--db", duckdb_url, **environment)
        return code, found["hub"][0]["level"], found["hub"][0]["what"]

    with hub() as url:
        assert told(HF_ENDPOINT=url, HF_TOKEN=SECRET) == (
            0,
            "ok",
            f"{url} knows the token, as lab's",
        )
        code, level, what = told(HF_ENDPOINT=url, HF_TOKEN=f"{SECRET}!")
        assert (code, level) == (1, "fail")
        assert "does not accept" in what
        assert told(HF_ENDPOINT=url, HF_TOKEN="busy")[:2] == (0, "warn")
        assert told(HF_ENDPOINT=url, HF_TOKEN=f"{SECRET}\nx")[:2] != (0, "ok")
    assert told(HF_ENDPOINT=url, HF_TOKEN=SECRET)[:2] == (0, "warn")
    assert told(HF_ENDPOINT=url, HF_TOKEN="")[:2] == (0, "ok")
    assert told(HF_HUB_OFFLINE="1", HF_TOKEN=SECRET)[2].startswith("offline")


def test_a_folder_without_room_fails(doctor: Doctor, duckdb_url: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o555)
    # Root may write everywhere, and finds no room here.
    closed, why = (
        (Path("/proc"), "0.0 GiB free")
        if os.geteuid() == 0
        else (tmp_path / "work", "not writable")
    )
    code, found = doctor("disk", "--db", duckdb_url, HEADS_WORK_DIR=str(closed))
    assert (code, found["disk"][0]["level"]) == (1, "fail")
    assert why in found["disk"][0]["what"]


def test_looking_changes_no_older_job_store(
    doctor: Doctor, store: JobStore, duckdb_url: str
) -> None:
    _queue(store)
    database = Database(duckdb_url, lock_timeout=30)
    jobs_schema.downgrade(database, "-1")
    code, found = doctor("jobs", "--db", duckdb_url)
    assert (code, levels(found["jobs"])) == (1, ["fail"])
    assert "bring it up with `heads db upgrade`" in found["jobs"][0]["what"]
    with pytest.raises(SchemaError, match="older"):
        jobs_schema.check(database)


def test_no_such_check(duckdb_url: str) -> None:
    done = commands.run(["doctor", "databse", "--db", duckdb_url])
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are packages, database" in done.stderr
