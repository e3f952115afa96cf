"""What is done to a job's row, whoever may do it; each leaves an event that tells of it."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from catalog.jobs.orm import Job, JobEvent, State

# As events name them.
QUEUED = "queued"
CLAIMED = "claimed"
RELEASED = "released"
MOVED = "moved"
PUT_BACK = "put back"
CANCEL_REQUESTED = "cancel requested"
REAPED = "put back by the reaper"

_ERROR_LINES = 30
_ERROR_LENGTH = 8_000
_RESTS_FROM = 3
"""Attempts from which on a job that is put back rests: one death, or two, may be chance."""
_REST, _LONGEST_REST = timedelta(seconds=15), timedelta(minutes=5)
"""Each is twice as long as the one before."""


def rest(job: Job) -> timedelta:
    """For how long a job is left alone once its worker is gone."""
    if job.attempt < _RESTS_FROM:
        return timedelta()
    return min(_REST * 2 ** min(job.attempt - _RESTS_FROM, 10), _LONGEST_REST)


def queue(session: Session, job: Job, now: datetime, what: str, detail: str) -> None:
    job.state = State.QUEUED
    job.queued_at = now
    job.cancel_requested = False
    job.nudged_at = job.lease_expires_at = job.finished_at = job.not_before = None
    forget_progress(job)
    tell(session, job, now, what, detail)


def finish(
    session: Session, job: Job, state: State, now: datetime, detail: str | None = None
) -> None:
    job.state = state
    job.finished_at = now
    job.lease_expires_at = None
    tell(session, job, now, state, detail)


def forget_progress(job: Job) -> None:
    job.stage = job.stage_started_at = job.total = None
    job.stage_from = job.done = 0


def tell(session: Session, job: Job, now: datetime, what: str, detail: str | None = None) -> None:
    session.add(JobEvent(job_id=job.id, at=now, what=what, detail=detail))


def death(job: Job) -> str:
    heard = f"{job.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC" if job.heartbeat_at else "never"
    return f"{job.worker} was last heard of at {heard}"


def last_lines(error: str) -> str:
    """The end of a traceback, as text that every database takes."""
    text = error.replace("\0", "␀").encode(errors="replace").decode()
    return "\n".join(text.strip().splitlines()[-_ERROR_LINES:])[-_ERROR_LENGTH:]
