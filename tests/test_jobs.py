"""The job store: one job per key, one holder per job, and nothing that a dead worker leaves."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import jobs
import pytest
from jobs import LEASE, claimed, happened, later, rested, spec, submitted, waited

from catalog import Catalog
from catalog.errors import UsageError
from catalog.jobs import Job, JobProgress, JobStore, LeaseLost, State, Worker
from catalog.jobs import schema as jobs_schema

store = jobs.store


class TestLife:
    def test_a_job_from_its_request_to_its_runs(self, store: JobStore) -> None:
        job = submitted(store, submitted_by="schedule 3")
        assert (job.state, job.attempt, job.request) == ("queued", 0, {"model": "./m"})
        held = store.claim(
            job.id, worker="w", device="cuda:0", pid=7, host="h", lease_seconds=LEASE
        )
        assert held is not None
        assert held.lease_token is not None
        assert (held.state, held.attempt, held.device) == ("running", 1, "cuda:0")
        assert held.lease_expires_at is not None
        assert held.started_at is not None
        assert held.lease_expires_at - held.started_at == timedelta(seconds=LEASE)
        done = store.succeed(job.id, held.lease_token, [4, 5])
        assert (done.state, done.run_ids, done.error) == ("succeeded", [4, 5], None)
        again = store.get(job.id)
        assert again.finished_at is not None
        assert again.created_at <= held.started_at <= again.finished_at
        assert happened(store, job.id) == ["queued", "claimed", "succeeded"]
        assert store.log(job.id)[0].detail == "by schedule 3"

    def test_what_is_to_be_shown_takes_the_place_of_progress(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        store.beat(job.id, token, LEASE, JobProgress(stage="layers", done=2, total=40))
        store.succeed(job.id, token, [], note="no tokenizer")
        seen = store.get(job.id)
        assert (seen.stage, seen.done, seen.total) == ("no tokenizer", 0, None)

    def test_progress_tells_when_the_stage_will_end(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        assert store.get(job.id).expected_end is None
        # A run that goes on has layers already when it first tells of them.
        store.beat(job.id, token, LEASE, JobProgress(stage="layers", done=20, total=40))
        assert store.get(job.id).expected_end is None
        time.sleep(0.2)
        store.beat(job.id, token, LEASE, JobProgress(stage="layers", done=25, total=40))
        seen = store.get(job.id)
        assert (seen.stage, seen.done, seen.total) == ("layers", 25, 40)
        assert seen.heartbeat_at is not None
        assert seen.stage_started_at is not None
        assert seen.expected_end is not None
        took = seen.heartbeat_at - seen.stage_started_at
        assert took >= timedelta(seconds=0.2)
        assert seen.expected_end - seen.heartbeat_at == pytest.approx(
            3 * took, abs=timedelta(milliseconds=1)
        )
        store.beat(job.id, token, LEASE, JobProgress(stage="publishing"))
        assert store.get(job.id).expected_end is None
        assert happened(store, job.id) == ["queued", "claimed"]

    def test_a_failure_keeps_the_end_of_its_traceback(self, store: JobStore) -> None:
        job = submitted(store)
        lines = [f"line {n}" for n in range(500)]
        trace = "\n".join([*lines, "ValueError: \x00 and \udc80"])
        error = store.fail(job.id, claimed(store, job.id), trace).error
        assert error is not None
        assert error == store.get(job.id).error
        assert error.splitlines()[-2:] == ["line 499", "ValueError: ␀ and ?"]
        assert len(error.splitlines()) == 30
        assert store.log(job.id)[-1].detail == "ValueError: ␀ and ?"

    def test_what_is_given_back_is_no_attempt(self, store: JobStore) -> None:
        job = submitted(store)
        store.release(job.id, claimed(store, job.id), "SIGTERM")
        assert (store.get(job.id).state, store.get(job.id).attempt) == ("queued", 0)
        moved = store.move(job.id, claimed(store, job.id), "gpu", "needs 30 GB, there are 4 GB")
        assert (moved.queue, moved.attempt) == ("gpu", 0)
        back = store.retry_later(job.id, claimed(store, job.id), {"batch": 1}, "out of memory")
        assert (back.request, back.attempt, back.state) == ({"batch": 1}, 1, "queued")
        assert happened(store, job.id) == [
            "queued", "claimed", "released", "claimed", "moved", "claimed", "put back",
        ]  # fmt: skip

    def test_lists(self, store: JobStore) -> None:
        one, two = submitted(store, "a"), submitted(store, "b", model="n", queue="gpu")
        claimed(store, two.id)
        assert [job.id for job in store.list()] == [two.id, one.id]
        assert [job.id for job in store.list(limit=1)] == [two.id]
        assert [job.id for job in store.list(states=[State.QUEUED])] == [one.id]
        assert [job.id for job in store.list(model="n")] == [two.id]
        assert store.count() == {("cpu", "queued"): 1, ("gpu", "running"): 1}

    def test_an_unknown_job_is_named(self, store: JobStore) -> None:
        for ask in (store.get, store.log, store.cancel, store.retry):
            with pytest.raises(UsageError, match="no job 9; `heads jobs` lists"):
                ask(9)
        assert store.claim(9, worker="w", lease_seconds=1) is None


class TestLease:
    def test_one_holder_at_a_time(self, store: JobStore) -> None:
        job = submitted(store)
        claimed(store, job.id)
        assert store.claim(job.id, worker="other", lease_seconds=LEASE) is None

    def test_a_lease_that_ran_out_is_fenced_off(self, store: JobStore) -> None:
        job = submitted(store)
        old = claimed(store, job.id, worker="old", lease=0.05)
        time.sleep(0.1)
        new = claimed(store, job.id, worker="new")
        for write in _writes(store, job.id, old):
            with pytest.raises(LeaseLost, match=f"job {job.id} is no longer this worker's"):
                write()
        assert store.succeed(job.id, new, [1]).worker == "new"
        assert happened(store, job.id) == [
            "queued", "claimed", "put back by the reaper", "claimed", "succeeded",
        ]  # fmt: skip

    def test_a_late_holder_goes_on_where_nobody_took_its_place(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id, lease=0.05)
        time.sleep(0.1)
        store.beat(job.id, token, LEASE)
        assert store.reap().requeued == []
        assert store.succeed(job.id, token, []).state == "succeeded"

    def test_an_answer_that_was_lost_may_be_asked_for_again(self, store: JobStore) -> None:
        ends: list[Callable[[int, str], Job]] = [
            lambda job_id, token: store.succeed(job_id, token, [1]),
            lambda job_id, token: store.fail(job_id, token, "no"),
            lambda job_id, token: store.release(job_id, token, "SIGTERM"),
            lambda job_id, token: store.move(job_id, token, "gpu", "large"),
            lambda job_id, token: store.put_back(job_id, token, "killed"),
            store.cancelled,
        ]
        for number, end in enumerate(ends):
            job = submitted(store, str(number))
            token = claimed(store, job.id)
            first, second = end(job.id, token), end(job.id, token)
            assert (first.state, first.attempt) == (second.state, second.attempt)
            assert len(happened(store, job.id)) == 3

    def test_what_is_over_cannot_be_written(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        store.fail(job.id, token, "no")
        with pytest.raises(LeaseLost, match="it is failed"):
            store.succeed(job.id, token, [1])
        with pytest.raises(LeaseLost):
            store.beat(job.id, token, LEASE)


def _writes(store: JobStore, job_id: int, token: str) -> list[Callable[[], object]]:
    return [
        lambda: store.beat(job_id, token, LEASE),
        lambda: store.succeed(job_id, token, [9]),
        lambda: store.fail(job_id, token, "x"),
        lambda: store.cancelled(job_id, token),
        lambda: store.release(job_id, token, "x"),
        lambda: store.move(job_id, token, "x", "x"),
        lambda: store.retry_later(job_id, token, {}, "x"),
        lambda: store.put_back(job_id, token, "x"),
    ]


class TestReaper:
    def test_what_a_dead_worker_left_is_queued_until_it_has_killed_enough(
        self, store: JobStore
    ) -> None:
        """Three times at least, and for half an hour at least; after two it rests in between."""
        job = submitted(store)
        claimed(store, job.id)
        assert store.reap() == store.reap(store.now())
        [back] = store.reap(later(store)).requeued
        assert (back.id, back.state, back.attempt, back.not_before) == (job.id, "queued", 1, None)
        store.put_back(job.id, claimed(store, job.id), "its process was killed")
        rests = []
        for attempt in range(3, 10):
            assert [one.id for one in store.to_nudge(0)] == [job.id]
            token = claimed(store, job.id)
            now = store.now()
            back = store.put_back(job.id, token, "its process was killed")
            assert back.attempt == attempt
            assert back.not_before is not None
            # Said before, by one that never heard the answer.
            assert store.put_back(job.id, token, "again").not_before == back.not_before
            rests.append(round((back.not_before - now).total_seconds()))
            assert store.to_nudge(0) == []
            assert store.claim(job.id, worker="w", lease_seconds=LEASE) is None
            rested(store, job.id)
        assert rests == [15, 30, 60, 120, 240, 300, 300]
        claimed(store, job.id)
        reaped = store.reap(later(store, 1801))
        assert (reaped.requeued, [failed.id for failed in reaped.failed]) == ([], [job.id])
        failed = store.get(job.id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert "w was last heard of at" in failed.error
        assert "in attempt 10" in failed.error
        assert store.claim(job.id, worker="w", lease_seconds=LEASE) is None
        again = store.retry(job.id)
        assert (again.attempt, again.not_before) == (0, None)

    def test_time_alone_gives_no_job_up(self, store: JobStore) -> None:
        job = submitted(store)
        for attempt in (1, 2):
            claimed(store, job.id)
            [back] = store.reap(later(store, 7200)).requeued
            assert back.attempt == attempt
        claimed(store, job.id)
        assert [one.id for one in store.reap(later(store, 7200)).failed] == [job.id]

    def test_what_was_given_back_has_all_its_time(self, store: JobStore) -> None:
        job = submitted(store)
        store.release(job.id, claimed(store, job.id), "SIGTERM")
        first = store.get(job.id).begun_at
        claimed(store, job.id)
        second = store.get(job.id).begun_at
        assert first is not None
        assert second is not None
        assert first < second

    def test_a_claim_does_not_go_beyond_the_attempts_either(self, empty_catalog: Catalog) -> None:
        database = jobs_schema.open_database(empty_catalog.database)
        store = JobStore(database, give_up_after=0)
        job = submitted(store, max_attempts=1)
        claimed(store, job.id, lease=0.05)
        time.sleep(0.1)
        assert store.claim(job.id, worker="w", lease_seconds=LEASE) is None
        assert [one.id for one in store.reap().failed] == [job.id]

    def test_a_job_that_was_to_be_cancelled_is_not_begun_again(self, store: JobStore) -> None:
        job = submitted(store)
        claimed(store, job.id, lease=0.05)
        store.cancel(job.id)
        time.sleep(0.1)
        assert store.claim(job.id, worker="w", lease_seconds=LEASE) is None
        assert [one.id for one in store.reap().cancelled] == [job.id]
        assert store.get(job.id).state == "cancelled"

    def test_queued_jobs_whose_message_may_be_lost_are_told_of(self, store: JobStore) -> None:
        one, two = submitted(store, "a"), submitted(store, "b")
        assert [job.id for job in store.to_nudge(0)] == [one.id, two.id]
        assert store.to_nudge(1800) == []
        waited(store, 3600)
        assert [job.id for job in store.to_nudge(1800)] == [one.id, two.id]
        store.nudged([one.id])
        assert [job.id for job in store.to_nudge(1800)] == [two.id]
        store.release(one.id, claimed(store, one.id), "SIGTERM")
        assert store.get(one.id).nudged_at is None
        claimed(store, two.id)
        assert [job.id for job in store.to_nudge(0)] == [one.id]


class TestUsers:
    def test_a_queued_job_is_cancelled_at_once(self, store: JobStore) -> None:
        job = submitted(store)
        assert store.cancel(job.id).state == "cancelled"
        assert store.claim(job.id, worker="w", lease_seconds=LEASE) is None
        assert store.cancel(job.id).state == "cancelled"
        assert happened(store, job.id) == ["queued", "cancelled"]

    def test_a_running_job_is_cancelled_by_its_worker(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        assert not store.beat(job.id, token, LEASE).cancel_requested
        assert store.cancel(job.id).state == "running"
        store.cancel(job.id)
        assert store.beat(job.id, token, LEASE).cancel_requested
        assert store.cancelled(job.id, token).state == "cancelled"
        assert happened(store, job.id) == ["queued", "claimed", "cancel requested", "cancelled"]

    def test_a_cancelled_job_that_is_given_back_stays_cancelled(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        store.cancel(job.id)
        assert store.release(job.id, token, "SIGTERM").state == "cancelled"

    def test_a_failed_job_is_tried_again_with_all_its_attempts(self, store: JobStore) -> None:
        job = submitted(store)
        token = claimed(store, job.id)
        store.fail(job.id, token, "no disk")
        back = store.retry(job.id)
        assert (back.state, back.attempt, back.error, back.finished_at) == ("queued", 0, None, None)
        with pytest.raises(LeaseLost):
            store.release(job.id, token, "a holder of old")
        store.succeed(job.id, claimed(store, job.id), [])
        with pytest.raises(UsageError, match="is succeeded; only failed and cancelled"):
            store.retry(job.id)

    def test_a_job_is_not_tried_again_beside_its_like(self, store: JobStore) -> None:
        job = submitted(store)
        store.cancel(job.id)
        other = submitted(store)
        with pytest.raises(UsageError, match=f"the same as job {other.id}"):
            store.retry(job.id)

    def test_a_job_is_not_tried_again_beside_one_that_is_being_queued(
        self, store: JobStore
    ) -> None:
        one, other = (store.cancel(submitted(store).id) for _ in range(2))
        with ThreadPoolExecutor(1) as pool:
            with store._writing() as session:
                session.get_one(Job, other.id).state = State.QUEUED
                session.flush()
                trying = pool.submit(store.retry, one.id)
                assert wait([trying], timeout=0.3).not_done == {trying}
            with pytest.raises(UsageError, match=f"job {one.id} is the same as"):
                trying.result()

    def test_the_same_request_is_the_same_job_until_it_is_over(self, store: JobStore) -> None:
        first = submitted(store)
        assert store.submit(spec()).job.id == first.id
        token = claimed(store, first.id)
        same = store.submit(spec())
        assert (same.job.id, same.is_new, same.job.state) == (first.id, False, "running")
        store.succeed(first.id, token, [])
        assert submitted(store).id != first.id


class TestWorkers:
    def test_workers_are_known_while_they_beat(self, store: JobStore) -> None:
        worker = Worker(name="h:cuda:0", host="h", pid=1, queues=["gpu", "cpu"], memory=80 * 2**30)
        store.worker_beat(worker)
        [first] = store.workers(alive_within=30)
        assert (first.queues, first.memory, first.facts) == (["gpu", "cpu"], 80 * 2**30, {})
        store.worker_beat(worker)
        [second] = store.workers()
        assert (second.started_at, second.heartbeat_at > first.heartbeat_at) == (
            first.started_at,
            True,
        )
        store.worker_beat(Worker(name="h:cuda:0", host="h", pid=2, queues=[]))
        assert store.workers()[0].started_at > first.started_at
        time.sleep(0.1)
        assert store.workers(alive_within=0.05) == []
        store.worker_gone("h:cuda:0")
        assert store.workers() == []

    def test_there_is_one_leader(self, store: JobStore) -> None:
        assert store.lead("scheduler", "a", 1.5)
        assert not store.lead("scheduler", "b", 1.5)
        assert store.lead("scheduler", "a", 1.5)
        assert store.lead("another", "b", 1.5)
        time.sleep(1.6)
        assert store.lead("scheduler", "b", 60)
        assert not store.lead("scheduler", "a", 60)
        store.resign("scheduler", "a")
        assert not store.lead("scheduler", "a", 60)
        store.resign("scheduler", "b")
        assert store.lead("scheduler", "a", 60)
