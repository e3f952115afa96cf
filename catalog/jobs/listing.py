"""Jobs and workers as people read them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from catalog.errors import UsageError
from catalog.jobs.orm import Job, State
from catalog.jobs.presence import ALIVE
from catalog.jobs.store import JobStore
from catalog.sql import Result

JOBS = pa.schema(
    {
        "id": pa.int64(),
        "model": pa.string(),
        "suite": pa.string(),
        "queue": pa.string(),
        "state": pa.string(),
        "progress": pa.string(),
        "expected_end": pa.timestamp("s", tz="UTC"),
        "worker": pa.string(),
        "attempt": pa.int64(),
        "by": pa.string(),
        "age": pa.string(),
    }
)
EVENTS = pa.schema({"at": pa.timestamp("ms", tz="UTC"), "what": pa.string(), "detail": pa.string()})
WORKERS = pa.schema(
    {
        "worker": pa.string(),
        "host": pa.string(),
        "pid": pa.int64(),
        "queues": pa.string(),
        "device": pa.string(),
        "memory_gib": pa.float64(),
        "job": pa.int64(),
        "health": pa.string(),
    }
)
SILENT = timedelta(seconds=ALIVE)
_GIB = 2**30
_SPAN = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def jobs(store: JobStore, found: Iterable[Job]) -> Result:
    """Jobs, one a row: what each is at, when that will be done, and how old it is."""
    now = store.now()
    rows = [
        {
            "id": job.id,
            "model": job.model,
            "suite": job.suite,
            "queue": job.queue,
            "state": "cancelling" if is_stopping(job) else job.state,
            "progress": progress(job),
            "expected_end": job.expected_end,
            "worker": job.worker,
            "attempt": job.attempt,
            "by": job.submitted_by,
            "age": duration(now - job.created_at),
        }
        for job in found
    ]
    return _table(rows, JOBS)


def events(store: JobStore, job_id: int) -> Result:
    """What happened to a job, in order.

    Raises:
        UsageError: If there is none.
    """
    rows = [{"at": one.at, "what": one.what, "detail": one.detail} for one in store.log(job_id)]
    return _table(rows, EVENTS)


def workers(store: JobStore) -> Result:
    """Workers by name, with what a model may take, the job of each, and when each was heard of."""
    now = store.now()
    at = {job.worker: job.id for job in store.list(states=[State.RUNNING])}
    rows = [
        {
            "worker": one.name,
            "host": one.host,
            "pid": one.pid,
            "queues": ", ".join(one.queues),
            "device": one.device,
            "memory_gib": one.memory and round(one.memory / _GIB, 1),
            "job": at.get(one.name),
            "health": _health(now - one.heartbeat_at),
        }
        for one in store.workers()
    ]
    return _table(rows, WORKERS)


def is_alive(store: JobStore, queue: str | None = None) -> bool:
    """Whether a worker lives; `queue`, if given: one that serves it."""
    alive = store.workers(alive_within=ALIVE)
    return any(queue is None or queue in one.queues for one in alive)


def facts(store: JobStore, job_id: int) -> Result:
    """All that is known of a job and what happened to it, one fact a row: what, value.

    Raises:
        UsageError: If there is none.
    """
    job = store.get(job_id)
    found = {name: getattr(job, name) for name in Job.__mapper__.columns.keys()}  # noqa: SIM118
    # A token is what makes its holder the holder.
    del found["lease_token"]
    found["expected_end"] = job.expected_end
    rows = [{"what": name, "value": _text(value)} for name, value in found.items()]
    rows += [
        {"what": f"{_text(one.at)} {one.what}", "value": one.detail} for one in store.log(job_id)
    ]
    return _table(rows, pa.schema({"what": pa.string(), "value": pa.string()}))


def is_stopping(job: Job) -> bool:
    """Whether its worker has yet to hear that it was cancelled."""
    return job.state == State.RUNNING and job.cancel_requested


def progress(job: Job) -> str | None:
    """What a running job is at, and how far; why a failed one failed, in a line."""
    if job.state == State.QUEUED and job.not_before:
        return f"rests until {job.not_before:%H:%M:%S} UTC: {job.attempt} workers ended with it"
    if job.state == State.FAILED and job.error:
        return job.error.rpartition("\n")[2]
    if job.state != State.RUNNING or job.stage is None:
        return None
    return job.stage if job.total is None else f"{job.stage}: {job.done}/{job.total}"


def duration(span: timedelta) -> str:
    """A span of time, in its two largest units."""
    left = max(int(span.total_seconds()), 0)
    for place, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller, name = (*_UNITS, (1, "s"))[place + 1]
            return f"{left // size} {unit} {left % size // smaller} {name}"
    return f"{left} s"


def span(text: str, option: str) -> timedelta:
    """A number of minutes, hours, days or weeks: `30m`, `6h`, `1d`, `2w`.

    Raises:
        UsageError: If the text is nothing of that kind; names the option that it was given for.
    """
    matched = _SPAN.fullmatch(text.strip())
    if matched is None:
        raise UsageError(f"{option} {text!r}: expected minutes, hours, days or weeks, such as 6h")
    return timedelta(**{_SPANS[matched[2]]: int(matched[1])})


def _health(silence: timedelta) -> str:
    ago = f"heard of {duration(silence)} ago"
    return f"silent: last {ago}" if silence > SILENT else ago


def _text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return str(value)


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> Result:
    return Result(pa.Table.from_pylist(rows, schema=schema))
