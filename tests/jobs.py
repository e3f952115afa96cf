"""Job stores for tests, and jobs in them."""

import multiprocessing
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from catalog import Catalog
from catalog.database import Database
from catalog.jobs import Job, JobSpec, JobStore, State, open_store

LEASE = 60.0


def spec(key: str = "k", **given: Any) -> JobSpec:
    facts = {"model": "m", "suite": "weights", "request": {"model": "./m"}, "queue": "cpu"}
    return JobSpec(**facts | given, key=key)


@pytest.fixture
def store(empty_catalog: Catalog) -> JobStore:
    """An empty store, once on SQLite and once on PostgreSQL."""
    return open_store(empty_catalog.database)


def submitted(store: JobStore, key: str = "k", **given: Any) -> Job:
    made = store.submit(spec(key, **given))
    assert made.is_new
    return made.job


def claimed(store: JobStore, job_id: int, *, worker: str = "w", lease: float = LEASE) -> str:
    """The token of a new lease."""
    job = store.claim(job_id, worker=worker, lease_seconds=lease)
    assert job is not None
    assert job.lease_token is not None
    return job.lease_token


def happened(store: JobStore, job_id: int) -> list[str]:
    return [event.what for event in store.log(job_id)]


def rested(store: JobStore, job_id: int) -> None:
    """Let a job's rest be over."""
    with store._writing() as session:
        session.get_one(Job, job_id).not_before = store.now()


def waited(store: JobStore, seconds: float) -> None:
    """Let all jobs be queued for that long."""
    with store._writing() as session:
        for job in session.scalars(select(Job).where(Job.state == State.QUEUED)):
            job.queued_at -= timedelta(seconds=seconds)


def later(store: JobStore, seconds: float = LEASE + 1) -> datetime:
    return store.now() + timedelta(seconds=seconds)


def in_processes(url: str, work: Callable[[JobStore, int], Any], number: int) -> list[Any]:
    """What `number` processes return that all begin at once."""
    with multiprocessing.get_context("fork").Manager() as manager:
        barrier, results = manager.Barrier(number), manager.list()

        def go(place: int) -> None:
            store = open_store(Database(url, lock_timeout=30))
            barrier.wait(60)
            results.append(work(store, place))

        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=go, args=(place,)) for place in range(number)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        return list(results)
