"""Jobs on the command line; `test_page_jobs` has the page."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import commands
import pytest

import catalog
from catalog.jobs import Job, JobProgress, JobSpec, JobStore, Worker, listing, open_store

HOSTILE = "<script>alert(1)</script>`*m*`"

Heads = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    return open_store(one.database)


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """Runs the command in the store's folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"COLUMNS": "200"}
        return commands.run(["jobs", *arguments], cwd=tmp_path, env=env)

    return run


def queued(store: JobStore, model: str = "m", suite: str = "weights") -> Job:
    spec = JobSpec(
        model=model, suite=suite, request={"model": model}, queue="cpu", key=f"{model} {suite}"
    )
    return store.submit(spec).job


def running(store: JobStore, job: Job) -> str:
    held = store.claim(job.id, worker="h:cpu", device="cpu", lease_seconds=60)
    assert held is not None
    assert held.lease_token is not None
    store.beat(job.id, held.lease_token, 60, JobProgress(stage="layers", done=0, total=4))
    time.sleep(0.01)
    store.beat(job.id, held.lease_token, 60, JobProgress(stage="layers", done=1, total=4))
    return held.lease_token


def failed(store: JobStore, job: Job) -> None:
    store.fail(job.id, running(store, job), f"Traceback ...\nValueError: {HOSTILE}")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (7_325, "2 h 2 min"), (200_000, "2 d 7 h")],
)
def test_spans_are_told_in_two_units(seconds: float, told: str) -> None:
    assert listing.duration(timedelta(seconds=seconds)) == told


class TestCommands:
    def test_jobs_are_listed(self, heads: Heads, store: JobStore) -> None:
        empty = heads()
        assert (empty.returncode, "heads ingest MODEL --queue" in empty.stderr) == (0, True)
        assert empty.stdout.split() == listing.JOBS.names
        first, second = queued(store), queued(store, "n")
        running(store, first)
        rows = json.loads(heads("--format", "json").stdout)
        assert [(row["id"], row["state"], row["progress"]) for row in rows] == [
            (second.id, "queued", None),
            (first.id, "running", "layers: 1/4"),
        ]
        assert rows[1]["expected_end"].endswith("+00:00")
        assert "h:cpu" in heads().stdout
        for asked in (("--state", "queued"), ("--model", "n"), ("-n", "1")):
            assert [row["id"] for row in json.loads(heads(*asked, "-f", "json").stdout)] == [
                second.id
            ]
        assert heads("--state", "asleep").returncode == 2

    def test_a_job_is_shown_with_its_error_and_its_life(
        self, heads: Heads, store: JobStore
    ) -> None:
        job = queued(store)
        failed(store, job)
        shown = heads("show", str(job.id))
        assert f"ValueError: {HOSTILE}" in shown.stdout
        facts = json.loads(heads("show", str(job.id), "-f", "json").stdout)
        assert "lease_token" not in {fact["what"] for fact in facts}
        assert [fact["what"].partition(" ")[2] for fact in facts[-3:]] == [
            "queued",
            "claimed",
            "failed",
        ]
        unknown = heads("show", "99")
        assert (unknown.returncode, "no job 99" in unknown.stderr) == (2, True)

    def test_jobs_are_cancelled_and_tried_again(self, heads: Heads, store: JobStore) -> None:
        waiting, held = queued(store), queued(store, "n")
        running(store, held)
        told = heads("cancel", str(waiting.id), str(held.id)).stderr
        assert f"job {waiting.id} is cancelled" in told
        assert f"job {held.id} is stopping: h:cpu was told" in told
        assert store.get(held.id).cancel_requested
        assert "queued again" in heads("retry", str(waiting.id)).stderr
        assert store.get(waiting.id).state == "queued"
        refused = heads("retry", str(held.id))
        assert (refused.returncode, "only failed and cancelled" in refused.stderr) == (2, True)

    def test_watching_ends_with_the_jobs(
        self, heads: Heads, store: JobStore, tmp_path: Path
    ) -> None:
        assert "no job is queued or running" in heads("watch").stderr
        good, bad = queued(store), queued(store, "n")
        token = running(store, good)

        program = Path(sys.executable).with_name("heads")
        watching = subprocess.Popen(
            [program, "jobs", "watch", str(good.id), str(bad.id), "--every", "0.2"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            watching.wait(5)
        store.succeed(good.id, token, [1])
        failed(store, bad)
        _, seen = watching.communicate(timeout=60)
        assert watching.returncode == 1
        assert "succeeded" in seen
        assert "failed" in seen
        assert heads("watch", str(good.id)).returncode == 0

    def test_workers_are_listed(self, heads: Heads, store: JobStore) -> None:
        assert "heads worker" in heads("workers").stderr
        store.worker_beat(Worker(name="h:cpu", host="h", pid=1, queues=["cpu", "gpu"]))
        job = queued(store)
        running(store, job)
        [row] = json.loads(heads("workers", "-f", "json").stdout)
        assert (row["worker"], row["queues"], row["job"]) == ("h:cpu", "cpu, gpu", job.id)
        assert row["health"].startswith("heard of")

    def test_the_schema_commands_cover_jobs(self, tmp_path: Path, store: JobStore) -> None:
        queued(store)

        def db(*arguments: str) -> str:
            program = Path(sys.executable).with_name("heads")
            done = subprocess.run(
                [program, "db", *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stderr

        for command in ("check", "upgrade"):
            assert "job store is" in db(command)
        assert "its job store is at schema none" in db("downgrade", "base", "--jobs")
        assert "its job store is at schema 0" in db("upgrade")
        assert store.list() == []
        assert "its job store is at schema none" in db("downgrade", "base")
