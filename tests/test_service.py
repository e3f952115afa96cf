"""Workers and schedulers as processes: jobs from a request to published scores."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import serving
from serving import PATIENCE, command, family_of, queued, relations_of, scores, statuses, until
from sqlalchemy import update

import catalog
from catalog import Catalog
from catalog.jobs import Job, State, open_store
from ingest.run import ingest
from ingest.service.app import celery_app, waiting
from ingest.service.submit import submit

tiny_model, words, valkey = serving.tiny_model, serving.words, serving.valkey
embedded, served = serving.embedded, serving.served


def test_a_worker_publishes_what_an_ingest_here_does(
    served: Catalog, tiny_model: Path, words: Path, tmp_path: Path
) -> None:
    store = open_store(served.database)
    job = queued(served, relations_of(tiny_model, words))
    again = submit(served, relations_of(tiny_model, words))
    assert [(one.job.id, one.is_new) for one in again] == [(job.id, False)]
    arguments = ("--device=cpu", "--log-format=json", "--stop-grace=120")
    with command(served, "worker", *arguments) as worker:
        running = until(lambda: (one := store.get(job.id)).state == State.RUNNING and one)
        assert running.pid in {child.pid for child in psutil.Process(worker.pid).children()}
        until(lambda: "torch" in mapped(running.pid) or store.get(job.id).is_over)
        assert "torch" not in mapped(worker.pid)
        until(lambda: store.get(job.id).is_over)
        assert [one.queues for one in store.workers(alive_within=30)] == [["cpu"]]
        # Its second child is another thread's, which ends at once when the worker is to stop.
        second = queued(served, relations_of(tiny_model, words, force=True))
        until(lambda: store.get(second.id).state == State.RUNNING)
        worker.send_signal(signal.SIGTERM)
        output, errors = worker.communicate(timeout=PATIENCE)
        assert (worker.returncode, output) == (0, "")
        told = [json.loads(line) for line in errors.splitlines()]
    ended = store.get(job.id)
    assert (ended.state, ended.attempt, ended.error) == (State.SUCCEEDED, 1, None)
    assert (store.get(second.id).state, store.get(second.id).attempt) == (State.SUCCEEDED, 1)
    assert store.workers() == []
    about = next(line for line in told if line.get("outcome") == "succeeded")
    assert (about["job"], about["suite"], about["attempt"]) == (job.id, "relations", 1)
    plain = catalog.connect(f"duckdb:///{tmp_path / 'plain.duckdb'}", create=True)
    ingest(plain, relations_of(tiny_model, words))
    assert scores(served) == scores(plain) != []
    assert statuses(served) == ["succeeded"] * 2


def mapped(pid: int) -> str:
    try:
        return " ".join(one.path for one in psutil.Process(pid).memory_maps())
    except psutil.Error:
        return ""


def test_a_killed_child_and_a_killed_worker_lose_no_job(
    embedded: Catalog, tiny_model: Path, words: Path
) -> None:
    store = open_store(embedded.database)
    job = queued(embedded, relations_of(tiny_model, words))

    def running(attempt: int) -> Job:
        def now() -> Job | None:
            one = store.get(job.id)
            return one if (one.state, one.attempt) == (State.RUNNING, attempt) else None

        found: Job = until(now)
        assert found.pid is not None
        return found

    with command(embedded, "worker", "--device=cpu", HEADS_LEASE="600") as worker:
        os.kill(running(1).pid or 0, signal.SIGKILL)
        # The lease would hold for ten minutes: the parent has seen it.
        running(2)
        worker.kill()
        worker.wait()
    # Of the worker nothing is left that could tell: its lease has to run out.
    with store._database.connect(writable=True) as connection, connection.begin():
        connection.execute(update(Job).values(lease_expires_at=datetime.now(UTC)))
    with command(embedded, "worker", "--device=cpu"):
        until(lambda: store.get(job.id).is_over)
    ended = store.get(job.id)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 3)
    assert statuses(embedded)[-1] == "succeeded"
    assert "running" not in statuses(embedded)


def test_a_stopped_worker_gives_its_job_back(
    embedded: Catalog, tiny_model: Path, words: Path
) -> None:
    store = open_store(embedded.database)
    job = queued(embedded, relations_of(tiny_model, words))
    with command(embedded, "worker", "--device=cpu", "--stop-grace=0") as worker:
        until(lambda: store.get(job.id).state == State.RUNNING)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE) == 0
    given = store.get(job.id)
    assert (given.state, given.attempt) == (State.QUEUED, 0)
    assert "is stopping" in str(store.log(job.id)[-1].detail)
    assert waiting(celery_app(embedded.database), ["cpu"])["cpu"] >= 1


def test_everything_starts_and_ends_together(embedded: Catalog, free_port: int) -> None:
    store = open_store(embedded.database)
    with command(embedded, "up", "--device=cpu", f"--port={free_port}") as all_:
        assert all_.stderr is not None
        for line in all_.stderr:
            if "the page is at" in line:
                break
        assert f"http://127.0.0.1:{free_port}" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/_stcore/health") as answer:
            assert answer.status == 200
        worker = until(lambda: store.workers(alive_within=30))[0]
        family = family_of(all_.pid)
        assert worker.pid in {one.pid for one in family}
        os.kill(worker.pid, signal.SIGKILL)
        told = all_.communicate(timeout=PATIENCE)[1]
        assert "the worker has ended (killed by SIGKILL), so all is stopped" in told
        assert all_.returncode == 1
        assert psutil.wait_procs(family, timeout=10)[1] == []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{free_port}/_stcore/health")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_second_scheduler_waits(embedded: Catalog) -> None:
    with (
        command(embedded, "scheduler") as first,
        command(embedded, "scheduler") as second,
    ):
        assert first.stderr is not None
        assert second.stderr is not None
        told = {first: first.stderr.readline(), second: second.stderr.readline()}
        leader = next(one for one, line in told.items() if "this scheduler leads" in line)
        other = next(one for one, line in told.items() if "another scheduler leads" in line)
        leader.send_signal(signal.SIGTERM)
        assert leader.wait(PATIENCE) == 0
        assert other.stderr is not None
        assert "this scheduler leads" in other.stderr.readline()


def test_whatever_is_said_is_a_record() -> None:
    """Of what libraries print, children too, as of what is logged."""
    program = """if True:
        import logging, os, subprocess, sys, warnings
        from catalog.jobs import Job
        from ingest.service import logs
        logs.set_up(logs.LogFormat.JSON)
        print("printed")
        warnings.warn("a warning")
        subprocess.run(["sh", "-c", "printf 'one\\rtwo\\n' >&2"])
        if not (child := os.fork()):
            os.abort()
        os.waitpid(child, 0)
        logs.tell_of(Job(id=7, model="m", suite="weights", attempt=2))
        logging.getLogger("x").warning("so %s", "it is", extra={"outcome": "failed"})
        sys.exit("the last word")
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    told = {line["message"]: line for line in map(json.loads, done.stderr.splitlines())}
    said = "\n".join(told)
    for one in ("printed", "one", "two", "the last word", "Fatal Python error: Aborted"):
        assert one in told
    assert "UserWarning: a warning" in said
    about = told["so it is"]
    assert about.pop("time")
    assert about == {
        "level": "WARNING",
        "name": "x",
        "message": "so it is",
        "job": 7,
        "model": "m",
        "suite": "weights",
        "attempt": 2,
        "outcome": "failed",
    }
