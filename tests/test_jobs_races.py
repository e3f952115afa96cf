"""The job store under many at once, and in any order of events."""

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import jobs
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers
from jobs import LEASE, claimed, in_processes, spec, submitted
from sqlalchemy.orm import Session

import catalog
from catalog import Catalog
from catalog.errors import UsageError
from catalog.jobs import Job, JobProgress, JobStore, LeaseLost, open_store
from catalog.jobs import schema as jobs_schema

store = jobs.store


class TestRaces:
    def test_one_of_many_processes_submits(self, store: JobStore, empty_url: str) -> None:
        def submit(one: JobStore, _place: int) -> list[tuple[int, bool]]:
            made = [one.submit(spec(str(n))) for n in range(10)]
            return [(each.job.id, each.is_new) for each in made]

        answers = in_processes(empty_url, submit, 6)
        assert len(store.list()) == 10
        assert len({tuple(job_id for job_id, _ in answer) for answer in answers}) == 1
        assert sum(is_new for _, is_new in chain.from_iterable(answers)) == 10

    def test_one_of_many_processes_claims(self, store: JobStore, empty_url: str) -> None:
        jobs = [submitted(store, str(n)).id for n in range(12)]

        def claim(one: JobStore, place: int) -> list[int]:
            names = (one.claim(job, worker=f"w{place}", lease_seconds=LEASE) for job in jobs)
            return [job.id for job in names if job is not None]

        won = in_processes(empty_url, claim, 6)
        assert sorted(chain.from_iterable(won)) == jobs
        assert all(job.attempt == 1 for job in store.list())

    def test_a_reaper_and_a_late_holder_agree_on_who_won(self, store: JobStore) -> None:
        for round_ in range(15):
            job = submitted(store, f"r{round_}")
            token = claimed(store, job.id, lease=0.0)

            def succeed(job: Job = job, token: str = token) -> bool:
                try:
                    store.succeed(job.id, token, [1])
                except LeaseLost:
                    return False
                return True

            with ThreadPoolExecutor(2) as pool:
                won, reaped = pool.submit(succeed), pool.submit(store.reap)
                is_done, taken = won.result(), [one.id for one in reaped.result().requeued]
            outcome = (is_done, taken, store.get(job.id).state)
            assert outcome in ((True, [], "succeeded"), (False, [job.id], "queued"))

    def test_threads_work_everything_off_once(self, store: JobStore) -> None:
        jobs = [submitted(store, str(n)).id for n in range(20)]

        def work(place: int) -> list[int]:
            done = []
            for job_id in jobs:
                job = store.claim(job_id, worker=f"w{place}", lease_seconds=LEASE)
                if job is not None and job.lease_token is not None:
                    store.beat(job_id, job.lease_token, LEASE, JobProgress(stage="s", done=1))
                    store.succeed(job_id, job.lease_token, [place])
                    done.append(job_id)
            return done

        with ThreadPoolExecutor(6) as pool:
            done = Counter(chain.from_iterable(pool.map(work, range(6))))
        assert done == Counter(jobs)
        assert {job.state for job in store.list()} == {"succeeded"}


def test_a_holder_that_freezes_while_it_writes_is_reaped(new_postgresql_url: str) -> None:
    """A row that is locked is passed over, and to a server a frozen process is no dead one."""
    store = open_store(catalog.connect(new_postgresql_url, create=True).database)
    job = submitted(store)
    claimed(store, job.id, lease=0.0)
    pid = os.fork()
    if pid == 0:
        with store._writing() as session:
            store._locked(session, job.id)
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        assert store.reap().requeued == []
        deadline = time.monotonic() + 60
        while not (requeued := store.reap().requeued):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert [one.id for one in requeued] == [job.id]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Told(JobStore):
    """A store whose clock the test sets."""

    time = datetime(2026, 1, 1, tzinfo=UTC)

    def _clock(self, _session: Session) -> datetime:
        return self.time


@dataclass
class Expected:
    """What a job must be, by a model without a database."""

    key: int
    state: str = "queued"
    attempt: int = 0
    token: str | None = None
    expires: datetime | None = None
    is_stopping: bool = False


class Lives(RuleBasedStateMachine):
    """Users, workers that come late, and a reaper, in any order: the store is what the model is."""

    MAX_ATTEMPTS = 2
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self, store: Told) -> None:
        """Begin with no job; those of earlier examples have other keys."""
        super().__init__()
        self.store = store
        self.name = uuid.uuid4().hex
        self.known: dict[int, Expected] = {}

    @rule(target=jobs, key=integers(0, 1))
    def submit(self, key: int) -> int:
        made = self.store.submit(spec(f"{self.name} {key}", max_attempts=self.MAX_ATTEMPTS))
        same = [job_id for job_id in self.known if self.is_active(job_id, key)]
        assert same == ([] if made.is_new else [made.job.id])
        self.known.setdefault(made.job.id, Expected(key))
        return made.job.id

    @rule(target=leases, job_id=jobs)
    def claim(self, job_id: int) -> tuple[int, str] | MultipleResults[Any]:
        job, one = self.store.claim(job_id, worker="w", lease_seconds=10), self.known[job_id]
        is_left = one.state == "running" and self.is_expired(one) and not one.is_stopping
        is_free = one.state == "queued" or (is_left and one.attempt < self.MAX_ATTEMPTS)
        assert (job is not None) == is_free
        if job is None:
            return multiple()
        assert job.lease_token is not None
        one.state, one.attempt, one.token = "running", one.attempt + 1, job.lease_token
        one.expires = self.store.time + timedelta(seconds=10)
        return job_id, job.lease_token

    @rule(lease=leases)
    def beat(self, lease: tuple[int, str]) -> None:
        if (one := self.held(lease, lambda: self.store.beat(*lease, 10))) is not None:
            one.expires = self.store.time + timedelta(seconds=10)

    @rule(lease=consumes(leases), is_good=booleans())
    def end(self, lease: tuple[int, str], is_good: bool) -> None:
        one = self.held(
            lease,
            lambda: self.store.succeed(*lease, [1]) if is_good else self.store.fail(*lease, "no"),
        )
        if one is not None:
            one.state = "succeeded" if is_good else "failed"

    @rule(lease=consumes(leases))
    def release(self, lease: tuple[int, str]) -> None:
        one = self.held(lease, lambda: self.store.release(*lease, "SIGTERM"))
        if one is not None and one.is_stopping:
            one.state = "cancelled"
        elif one is not None:
            one.state, one.attempt = "queued", one.attempt - 1

    @rule(job_id=jobs)
    def cancel(self, job_id: int) -> None:
        self.store.cancel(job_id)
        one = self.known[job_id]
        if one.state == "queued":
            one.state = "cancelled"
        one.is_stopping = one.is_stopping or one.state == "running"

    @rule(job_id=jobs)
    def retry(self, job_id: int) -> None:
        one = self.known[job_id]
        others = [other for other in self.known if self.is_active(other, one.key)]
        if one.state in {"failed", "cancelled"} and not others:
            self.store.retry(job_id)
            self.known[job_id] = Expected(one.key)
            return
        with pytest.raises(UsageError):
            self.store.retry(job_id)

    @rule(seconds=integers(1, 15))
    def wait(self, seconds: int) -> None:
        self.store.time += timedelta(seconds=seconds)

    @rule()
    def reap(self) -> None:
        self.store.reap()
        for one in self.known.values():
            if one.state == "running" and self.is_expired(one):
                is_last = one.attempt >= self.MAX_ATTEMPTS
                one.state = "cancelled" if one.is_stopping else "failed" if is_last else "queued"
                one.token = None

    @rule(target=leases, job_id=jobs, is_cancelled=booleans(), is_reaped=booleans())
    def die_and_be_replaced(
        self, job_id: int, is_cancelled: bool, is_reaped: bool
    ) -> MultipleResults[Any]:
        """What leases are for, and what rarely comes about by chance."""
        old = self.claim(job_id)
        if is_cancelled:
            self.cancel(job_id)
        self.wait(11)
        if is_reaped:
            self.reap()
        new = self.claim(job_id)
        return multiple(*(lease for lease in (old, new) if isinstance(lease, tuple)))

    @invariant()
    def the_store_is_what_the_model_is(self) -> None:
        found = {job.id: job for job in self.store.list() if job.id in self.known}
        assert {job_id: (job.state, job.attempt) for job_id, job in found.items()} == {
            job_id: (one.state, one.attempt) for job_id, one in self.known.items()
        }
        active = Counter(job.key for job in found.values() if not job.is_over)
        assert all(number == 1 for number in active.values())

    def held(self, lease: tuple[int, str], write: Callable[[], object]) -> Expected | None:
        """The job if the lease is its holder's; what is not must be refused."""
        one = self.known[lease[0]]
        if one.state == "running" and one.token == lease[1]:
            write()
            return one
        with pytest.raises(LeaseLost):
            write()
        return None

    def is_active(self, job_id: int, key: int) -> bool:
        one = self.known[job_id]
        return one.key == key and one.state in {"queued", "running"}

    def is_expired(self, one: Expected) -> bool:
        return one.expires is not None and one.expires < self.store.time


def test_no_order_of_events_breaks_the_rules(empty_catalog: Catalog) -> None:
    store = Told(jobs_schema.open_database(empty_catalog.database), give_up_after=0)

    class OfThisStore(Lives):
        def __init__(self) -> None:
            super().__init__(store)

    run_state_machine_as_test(
        OfThisStore, settings=settings(max_examples=20, stateful_step_count=30, deadline=None)
    )
