"""The job store: who may do what to a job, and what is written of it.

Every method is one transaction on a connection of its own, so that a store may be used by several
threads and after a fork. Every method raises `StorageError` while the database is away; none does
harm when it is called again after that, though a claim whose answer was lost holds its job until
its lease runs out.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.database import Database, writer_name
from catalog.errors import LeaseLost, UsageError
from catalog.jobs import changes
from catalog.jobs.connections import JobsDatabase
from catalog.jobs.facts import Beat, JobProgress, JobSpec, Reaped, Submitted
from catalog.jobs.orm import ACTIVE, IS_ACTIVE, Job, JobEvent, State
from catalog.jobs.presence import Presence
from catalog.jobs.schema import open_database
from catalog.settings import load_settings


def open_store(database: Database) -> "JobStore":
    """The job store of a catalog: beside a DuckDB file a SQLite file, made if there is none.

    Raises:
        SchemaError: If a server's tables are absent or older, or any are newer than this release's.
        StorageError: If the database is away, or cannot be written.
    """
    return JobStore(open_database(database), give_up_after=load_settings().give_up_after)


class JobStore(Presence):
    """All jobs of one catalog, and who works on them."""

    def __init__(self, database: JobsDatabase, *, give_up_after: float) -> None:
        """Wrap a database at this release's schema; `open_store` is the usual way to one.

        Args:
            database: Where the tables are.
            give_up_after: Seconds since it was first begun in which no job is given up because
                its workers end.
        """
        super().__init__(database)
        self._give_up_after = timedelta(seconds=give_up_after)

    # Asking

    def get(self, job_id: int) -> Job:
        """One job.

        Raises:
            UsageError: If there is none.
        """
        with self._reading() as session:
            return _require(session.get(Job, job_id), job_id)

    def list(
        self,
        *,
        states: Iterable[str] = (),
        model: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Jobs, the newest first.

        Args:
            states: Only these; by default all.
            model: Only of this model.
            limit: How many.
        """
        query = select(Job).order_by(Job.id.desc()).limit(limit)
        if chosen := tuple(states):
            query = query.where(Job.state.in_(chosen))
        if model is not None:
            query = query.where(Job.model == model)
        with self._reading() as session:
            return session.scalars(query).all()

    def count(self) -> dict[tuple[str, str], int]:
        """How many jobs there are, by queue and state."""
        query = select(Job.queue, Job.state, func.count()).group_by(Job.queue, Job.state)
        with self._reading() as session:
            return {(queue, state): number for queue, state, number in session.execute(query)}

    def log(self, job_id: int) -> Sequence[JobEvent]:
        """What happened to a job, in order.

        Raises:
            UsageError: If there is none.
        """
        query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
        with self._reading() as session:
            _require(session.get(Job, job_id), job_id)
            return session.scalars(query).all()

    # What users ask for

    def submit(self, spec: JobSpec) -> Submitted:
        """Queue a job, unless the same is queued or running."""
        while True:
            with self._writing() as session:
                same = select(Job).where(Job.key == spec.key, Job.state.in_(ACTIVE))
                if (job := session.scalar(same)) is not None:
                    return Submitted(job, is_new=False)
                now = self._clock(session)
                job = session.scalar(
                    self._insert(Job)
                    .values(
                        **vars(spec),
                        state=State.QUEUED,
                        attempt=0,
                        cancel_requested=False,
                        stage_from=0,
                        done=0,
                        created_at=now,
                        queued_at=now,
                        run_ids=[],
                    )
                    .on_conflict_do_nothing(index_elements=["key"], index_where=IS_ACTIVE)
                    .returning(Job)
                )
                # None where another was quicker: that job is found in the next round.
                if job is not None:
                    changes.tell(session, job, now, changes.QUEUED, f"by {spec.submitted_by}")
                    return Submitted(job, is_new=True)

    def cancel(self, job_id: int) -> Job:
        """Cancel a job: at once while it waits, else by its worker, at its next beat.

        One that is over stays as it is.

        Raises:
            UsageError: If there is none.
        """
        with self._writing() as session:
            job, now = self._locked(session, job_id), self._clock(session)
            if job.state == State.QUEUED:
                changes.finish(session, job, State.CANCELLED, now)
            elif job.state == State.RUNNING and not job.cancel_requested:
                job.cancel_requested = True
                changes.tell(session, job, now, changes.CANCEL_REQUESTED)
            return job

    def retry(self, job_id: int) -> Job:
        """Queue a failed or cancelled job again, with all its attempts.

        Raises:
            UsageError: If there is none, it is neither, or the same is queued or running.
        """
        try:
            with self._writing() as session:
                job, now = self._locked(session, job_id), self._clock(session)
                if job.state not in {State.FAILED, State.CANCELLED}:
                    raise UsageError(
                        f"job {job_id} is {job.state}; only failed and cancelled jobs are tried "
                        "again"
                    )
                same = select(Job.id).where(Job.key == job.key, Job.state.in_(ACTIVE))
                if (other := session.scalar(same)) is not None:
                    raise UsageError(
                        f"job {job_id} is the same as job {other}, which is not over yet"
                    )
                job.attempt = 0
                job.error = job.lease_token = None
                changes.queue(session, job, now, changes.QUEUED, "again")
                return job
        except IntegrityError:
            raise UsageError(
                f"job {job_id} is the same as one that was queued just now, which is not over yet"
            ) from None

    # What workers tell

    def claim(
        self,
        job_id: int,
        *,
        worker: str,
        lease_seconds: float,
        device: str | None = None,
        pid: int | None = None,
        host: str | None = None,
    ) -> Job | None:
        """Take a job under a new lease.

        Returns:
            The job with its `lease_token`; None if there is none, it is over, or another holds it.
        """
        with self._writing() as session:
            job = session.get(Job, job_id, with_for_update=True)
            now = self._clock(session)
            if job is None or not self._is_free(job, now):
                return None
            if job.state == State.RUNNING:
                changes.tell(session, job, now, changes.REAPED, changes.death(job))
            if job.attempt == 0:
                job.begun_at = now
            job.state = State.RUNNING
            job.attempt += 1
            job.lease_token = uuid.uuid4().hex
            job.lease_expires_at = now + timedelta(seconds=lease_seconds)
            job.worker, job.device, job.pid, job.host = worker, device, pid, host
            job.started_at = job.heartbeat_at = now
            changes.forget_progress(job)
            changes.tell(session, job, now, changes.CLAIMED, f"by {worker}, attempt {job.attempt}")
            return job

    def beat(
        self,
        job_id: int,
        token: str,
        lease_seconds: float,
        progress: JobProgress | None = None,
    ) -> Beat:
        """Show that the holder lives and what it is at; its lease begins anew.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        with self._writing() as session:
            job = self._locked(session, job_id)
            _require_holder(job, token)
            now = self._clock(session)
            job.heartbeat_at = now
            job.lease_expires_at = now + timedelta(seconds=lease_seconds)
            if progress is not None:
                if (progress.stage, progress.total) != (job.stage, job.total):
                    job.stage_started_at, job.stage_from = now, progress.done
                job.stage, job.done, job.total = progress.stage, progress.done, progress.total
            return Beat(job.cancel_requested)

    def succeed(
        self, job_id: int, token: str, run_ids: Iterable[int], note: str | None = None
    ) -> Job:
        """The holder has measured it all.

        Args:
            job_id: Of the job.
            token: Of the lease.
            run_ids: What the catalog has from it.
            note: What the job has to show instead of its last progress.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        shown = {"stage": note, "done": 0, "total": None} if note else {}
        return self._end(job_id, token, State.SUCCEEDED, run_ids=list(run_ids), **shown)

    def fail(self, job_id: int, token: str, error: str) -> Job:
        """The holder could not; trying again as it is would not help.

        Args:
            job_id: Of the job.
            token: Of the lease.
            error: The reason or a traceback, of which the last lines are kept.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        return self._end(job_id, token, State.FAILED, error=changes.last_lines(error))

    def cancelled(self, job_id: int, token: str) -> Job:
        """The holder has stopped, as it was asked to.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        return self._end(job_id, token, State.CANCELLED)

    def release(self, job_id: int, token: str, reason: str) -> Job:
        """The holder gives it back unfinished, through no fault of the job: no attempt is counted.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        return self._give_back(job_id, token, changes.RELEASED, reason, is_attempt=False)

    def move(self, job_id: int, token: str, queue: str, reason: str) -> Job:
        """The holder gives it to another queue; no attempt is counted.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        why = f"to {queue}: {reason}"
        return self._give_back(job_id, token, changes.MOVED, why, is_attempt=False, queue=queue)

    def retry_later(self, job_id: int, token: str, request: dict[str, Any], reason: str) -> Job:
        """The holder puts it back with another request, such as a smaller batch.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        return self._give_back(job_id, token, changes.PUT_BACK, reason, request=request)

    def put_back(self, job_id: int, token: str, reason: str) -> Job:
        """The holder has ended without an outcome: it is begun again, after a rest if again.

        It fails once it was begun `max_attempts` times and its time is up.

        Raises:
            LeaseLost: If the job is no longer the holder's.
        """
        with self._writing() as session:
            job = self._locked(session, job_id)
            if job.lease_token == token and job.state != State.RUNNING:
                return job  # said before, by a holder who never heard the answer
            _require_holder(job, token)
            self._left(session, job, self._clock(session), changes.PUT_BACK, reason)
            return job

    # What the scheduler does

    def reap(self, now: datetime | None = None) -> Reaped:
        """Put back or fail the jobs whose leases have run out.

        Args:
            now: Instead of the store's clock.
        """
        left: defaultdict[State, list[Job]] = defaultdict(list)
        with self._writing() as session:
            now = now or self._clock(session)
            query = (
                select(Job)
                .where(Job.state == State.RUNNING, Job.lease_expires_at < now)
                .order_by(Job.id)
                .with_for_update(skip_locked=True)
            )
            for job in session.scalars(query):
                reason = changes.death(job)
                job.lease_token = None
                self._left(session, job, now, changes.REAPED, reason)
                left[State(job.state)].append(job)
                self._end_writing(session, job)
        return Reaped(left[State.QUEUED], left[State.FAILED], left[State.CANCELLED])

    def to_nudge(self, older_than: float) -> Sequence[Job]:
        """Queued jobs about which nobody was sent a message for `older_than` seconds.

        Those that rest are not among them.
        """
        with self._reading() as session:
            now = self._clock(session)
            last = func.coalesce(Job.nudged_at, Job.queued_at)
            query = select(Job).where(
                Job.state == State.QUEUED,
                last <= now - timedelta(seconds=older_than),
                or_(Job.not_before.is_(None), Job.not_before <= now),
            )
            return session.scalars(query.order_by(Job.id)).all()

    def nudged(self, job_ids: Iterable[int]) -> None:
        """Messages about these jobs were sent."""
        with self._writing() as session:
            now = self._clock(session)
            query = update(Job).where(Job.id.in_(tuple(job_ids)), Job.state == State.QUEUED)
            session.execute(query.values(nudged_at=now))

    # How

    def _locked(self, session: Session, job_id: int) -> Job:
        return _require(session.get(Job, job_id, with_for_update=True), job_id)

    def _is_free(self, job: Job, now: datetime) -> bool:
        if job.state == State.QUEUED:
            return job.not_before is None or job.not_before <= now
        if job.state != State.RUNNING or job.cancel_requested or changes.rest(job):
            return False
        is_left = job.lease_expires_at is not None and job.lease_expires_at < now
        return is_left and not self._is_spent(job, now)

    def _is_spent(self, job: Job, now: datetime) -> bool:
        is_late = job.begun_at is None or now - job.begun_at >= self._give_up_after
        return is_late and job.attempt >= job.max_attempts

    def _left(self, session: Session, job: Job, now: datetime, what: str, reason: str) -> None:
        """Queue, fail or cancel a job whose holder is gone."""
        if job.cancel_requested:
            changes.finish(session, job, State.CANCELLED, now, reason)
        elif self._is_spent(job, now):
            job.error = f"{reason}, in attempt {job.attempt}"
            changes.finish(session, job, State.FAILED, now, job.error)
        else:
            changes.queue(session, job, now, what, reason)
            if rest := changes.rest(job):
                job.not_before = now + rest

    def _end_writing(self, session: Session, job: Job) -> None:
        """End what a holder that is gone was publishing on a server, with all writers behind it.

        No timeout of the server's does: to it, one that was frozen in the middle of COPY is busy.
        """
        if self._database.is_sqlite or job.host is None or job.pid is None:
            return
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = :name"
            ),
            {"name": writer_name(job.host, job.pid)},
        )

    def _end(self, job_id: int, token: str, state: State, **outcome: Any) -> Job:
        with self._writing() as session:
            job = self._locked(session, job_id)
            if (job.lease_token, job.state) == (token, state):
                return job  # said before, by a holder who never heard the answer
            _require_holder(job, token)
            for name, value in outcome.items():
                setattr(job, name, value)
            reason = job.error.rpartition("\n")[2] if job.error else None
            changes.finish(session, job, state, self._clock(session), reason)
            return job

    def _give_back(
        self,
        job_id: int,
        token: str,
        what: str,
        reason: str,
        *,
        is_attempt: bool = True,
        **given: Any,
    ) -> Job:
        """Queue a held job again, or cancel it if that was asked for meanwhile."""
        with self._writing() as session:
            job = self._locked(session, job_id)
            if job.lease_token == token and job.state in {State.QUEUED, State.CANCELLED}:
                return job  # said before, by a holder who never heard the answer
            _require_holder(job, token)
            now = self._clock(session)
            if job.cancel_requested:
                changes.finish(session, job, State.CANCELLED, now, reason)
                return job
            job.attempt -= not is_attempt
            for name, value in given.items():
                setattr(job, name, value)
            changes.queue(session, job, now, what, reason)
            return job


def _require(job: Job | None, job_id: int) -> Job:
    if job is None:
        raise UsageError(f"there is no job {job_id}; `heads jobs` lists them")
    return job


def _require_holder(job: Job, token: str) -> None:
    if job.lease_token != token or job.state != State.RUNNING:
        raise LeaseLost(f"job {job.id} is no longer this worker's: it is {job.state}")
