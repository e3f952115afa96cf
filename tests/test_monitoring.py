"""What Prometheus reads: the job store's numbers, whoever did the work."""

import urllib.request
from collections.abc import Mapping
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from catalog import Catalog
from catalog.errors import UsageError
from catalog.jobs import Job, JobSpec, JobStore, Past, Worker, open_store
from ingest.service import metrics

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def store(empty_catalog: Catalog) -> JobStore:
    return open_store(empty_catalog.database)


def scraped(port: int) -> Samples:
    """What a scrape gives, as Prometheus's own parser reads it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def _submitted(store: JobStore, key: str, suite: str = "weights") -> int:
    spec = JobSpec(model="m", suite=suite, request={}, queue="cpu", key=key)
    return store.submit(spec).job.id


def _claimed(store: JobStore, job_id: int, lease: float = 60) -> str:
    job = store.claim(job_id, worker="w", lease_seconds=lease)
    assert job is not None
    assert job.lease_token is not None
    return job.lease_token


def test_jobs_are_told_by_queue_state_suite_and_kind(
    store: JobStore, empty_catalog: Catalog
) -> None:
    first, second, third, fourth = (_submitted(store, key) for key in "abcd")
    store.succeed(first, _claimed(store, first), [1])
    error = "Traceback (most recent call last):\n  ...\ncatalog.errors.ModelError: no: such model"
    store.fail(second, _claimed(store, second), error)
    _claimed(store, third)
    beat = Worker(name="w", host="h", pid=1, queues=["cpu"], device="cpu", memory=8 << 30, facts={})
    store.worker_beat(beat)
    with metrics.served(empty_catalog.database, port=0) as port:
        told = scraped(port)
        assert value(told, "heads_up") == 1
        for state in ("queued", "running", "succeeded", "failed"):
            assert value(told, "heads_jobs", queue="cpu", state=state) == 1
        assert value(told, "heads_jobs", queue="cpu", state="cancelled") == 0
        wait = value(told, "heads_job_longest_wait_seconds", queue="cpu")
        assert wait is not None
        assert 0 <= wait < 60
        events = {"queued": 4, "claimed": 3, "succeeded": 1, "failed": 1}
        for event, number in events.items():
            assert value(told, "heads_job_events_total", suite="weights", event=event) == number
        failures = {"suite": "weights", "kind": "ModelError"}
        assert value(told, "heads_job_failures_total", **failures) == 1
        labels = {"worker": "w", "host": "h", "device": "cpu"}
        age = value(told, "heads_worker_heartbeat_age_seconds", **labels)
        assert age is not None
        assert 0 <= age < 60
        assert value(told, "heads_worker_memory_bytes", **labels) == 8 << 30
        labels = {"job": str(third), "model": "m", "suite": "weights", "worker": "w"}
        assert value(told, "heads_job_running_seconds", **labels) is not None
        # What has been counted stays counted: `retry` makes no failure undone.
        store.retry(second)
        assert value(scraped(port), "heads_job_failures_total", **failures) == 1
        store.cancel(fourth)
        assert value(scraped(port), "heads_jobs", queue="cpu", state="cancelled") == 1


def test_durations_are_a_histogram(store: JobStore, empty_catalog: Catalog) -> None:
    for key, seconds in {"a": 0.5, "b": 30, "c": 4_000}.items():
        job = _submitted(store, key)
        store.succeed(job, _claimed(store, job), [])
        _take(store, job, seconds)
    with metrics.served(empty_catalog.database, port=0) as port:
        told = scraped(port)
    expected = {"1.0": 1, "15.0": 1, "60.0": 2, "3600.0": 2, "14400.0": 3, "+Inf": 3}
    name = "heads_job_duration_seconds"
    for bound, number in expected.items():
        assert value(told, f"{name}_bucket", suite="weights", le=bound) == number
    assert value(told, f"{name}_count", suite="weights") == 3
    assert value(told, f"{name}_sum", suite="weights") == pytest.approx(4_030.5, abs=0.1)


def test_numbers_do_not_fall_when_jobs_are_pruned(store: JobStore, empty_catalog: Catalog) -> None:
    past = Past(store)
    good, bad, late, waits = (_submitted(store, key) for key in "abcd")
    store.succeed(good, _claimed(store, good), [1])
    _take(store, good, 30)
    store.fail(bad, _claimed(store, bad), "ModelError: no such model")
    with metrics.served(empty_catalog.database, port=0) as port:
        before = scraped(port)
        assert (past.old(timedelta(days=1)), past.prune(timedelta(days=1))) == (0, 0)
        assert (past.old(timedelta()), past.prune(timedelta())) == (2, 2)
        assert [job.id for job in store.list()] == [waits, late]
        assert store.count() == {("cpu", "queued"): 2}
        assert _counted(scraped(port)) == _counted(before) != {}
        # What comes later is added to what is gone.
        store.succeed(late, _claimed(store, late), [1])
        _take(store, late, 40)
        assert past.prune(timedelta()) == 1
        told = scraped(port)
    name = "heads_job_duration_seconds"
    assert value(told, f"{name}_count", suite="weights") == 2
    assert value(told, f"{name}_bucket", suite="weights", le="15.0") == 0
    assert value(told, f"{name}_bucket", suite="weights", le="60.0") == 2
    assert value(told, f"{name}_sum", suite="weights") == pytest.approx(70, abs=0.1)
    assert value(told, "heads_job_events_total", suite="weights", event="succeeded") == 2


def _counted(samples: Samples) -> dict[object, object]:
    kinds = ("events_total", "failures_total", "duration_seconds")
    return {
        key: pytest.approx(number)
        for key, number in samples.items()
        if any(kind in key[0] for kind in kinds)
    }


def _take(store: JobStore, job_id: int, seconds: float) -> None:
    """Let a job that is over have taken so long."""
    with store._writing() as session:
        job = session.get_one(Job, job_id)
        assert job.finished_at is not None
        job.started_at = job.finished_at - timedelta(seconds=seconds)


def test_a_job_whose_workers_died_is_lost(store: JobStore) -> None:
    spec = JobSpec(model="m", suite="weights", request={}, queue="cpu", key="k", max_attempts=1)
    job = store.submit(spec).job.id
    _claimed(store, job)
    store.reap(store.now() + timedelta(hours=1))
    assert Past(store).failures() == {("weights", "lost"): 1}


def test_no_port_is_a_sentence(empty_catalog: Catalog) -> None:
    with (
        metrics.served(empty_catalog.database, port=0) as port,
        pytest.raises(UsageError, match=f"cannot be served on 127.0.0.1:{port}"),
        metrics.served(empty_catalog.database, port=port),
    ):
        pass


def test_workers_that_died_are_forgotten_after_a_while(store: JobStore) -> None:
    for name in ("old", "new"):
        store.worker_beat(
            Worker(name=name, host="h", pid=1, queues=["cpu"], device="cpu", memory=1, facts={})
        )
    with store._writing() as session:
        worker = session.get_one(Worker, "old")
        worker.heartbeat_at -= timedelta(hours=25)
    assert store.forget_workers(24 * 3600) == ["old"]
    assert [worker.name for worker in store.workers()] == ["new"]
    assert store.forget_workers(24 * 3600) == []
