"""One job in a worker's child: claimed, measured, published while it is still ours, and closed.

Of the modules around jobs, only this one comes to import torch, and only once a job is claimed.
"""

import contextlib
import logging
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from catalog import connect, publishing
from catalog.database import Database
from catalog.declarations import Results
from catalog.errors import (
    HeadsError,
    LeaseLost,
    LockedError,
    StorageError,
    UnreachableError,
    UsageError,
)
from catalog.jobs import Job, JobProgress, JobStore, State, open_store
from catalog.jobs.presence import ALIVE
from catalog.pattern_rows import SUITE as STORED_PATTERNS
from catalog.settings import load_settings
from ingest.request import CaptureRequest, IngestRequest, Request
from ingest.service import logs
from ingest.service.app import celery_app, nudge
from ingest.service.guard import admit
from ingest.service.heal import close_orphans
from ingest.service.memory import GIB, Size, device_need, host_memory, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest.capture import Captured
    from ingest.run import Outcome

    Done = Sequence[Outcome | Captured]

AWAY = (StorageError, LockedError, UnreachableError, OperationalError, InterfaceError)
"""What a database that is restarted, cut off or full makes of what we ask of it."""

_TICK = 0.25
_NEWS = 1.0
"""Seconds between beats while there is progress to tell."""
_ANSWER = 10.0
"""Seconds in which work must stop when it is told to; after that its process ends."""
_PATIENCE = 6 * 3600.0
"""Seconds for which results wait for a database that is away."""
_SMALLER = 0.25
"""Of the usual batches, where those were too large."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Here:
    """The worker: what it is called, has and allows."""

    database: Database
    name: str
    device: str
    """`cpu` or `cuda:N`."""
    memory: int
    """Bytes of the device."""
    queues: tuple[str, ...]
    lease: float
    """Seconds."""
    grace: float
    """Seconds that a job has to end when the worker is told to stop."""
    soft_limit: float | None = None
    """Seconds after which a job is stopped at its next step, and fails."""
    hard_limit: float | None = None
    """Seconds after which a job's process is ended, and the job fails."""


class Stopped(BaseException):
    """Work that is to end at once; no `Exception`, so that none of the work's handlers has it."""


class Cancelled(Stopped):
    """Somebody has cancelled the job."""


class Superseded(Stopped):
    """The job is another worker's by now."""


class GivenBack(Stopped):
    """The worker is stopping."""


class Moved(Stopped):
    """The job goes to another queue, whose workers have more memory."""

    def __init__(self, queue: str, reason: str) -> None:
        """Name the queue, and why."""
        super().__init__(reason)
        self.queue = queue


class Orphaned(Stopped):
    """The worker's own process was killed."""


class TookTooLong(Stopped):
    """The job's time is over."""


def run(here: Here, job_id: int) -> None:
    """Do a job, if it is to be done and nobody else does it; it is closed in any case.

    Raises:
        StorageError: If the job store is away before the job is claimed.
    """
    store = open_store(here.database)
    with _told_to_stop() as told:
        try:
            before = store.get(job_id)
        except UsageError:
            _log.warning("there is no job %d", job_id)
            return
        job = store.claim(
            job_id,
            worker=here.name,
            device=here.device,
            pid=os.getpid(),
            host=platform.node(),
            lease_seconds=here.lease,
        )
        if job is None:
            _log.info("job %d is not to be done: it is %s", job_id, store.get(job_id).state)
            return
        logs.tell_of(job)
        _log.info("job %d begins", job.id)
        _Attempt(here, store, job, before, told).do()


def put_back_smaller(store: JobStore, job: Job, token: str, reason: str) -> Job:
    """Queue a job that had too little memory once more, with smaller batches; else it fails."""
    if job.suite == STORED_PATTERNS:
        return store.fail(job.id, token, f"{reason}; a shorter prompt takes less")
    if job.request.get("batch_share", 1.0) <= _SMALLER:
        return store.fail(job.id, token, f"{reason}, with smaller batches, too")
    smaller = job.request | {"batch_share": _SMALLER}
    return store.retry_later(job.id, token, smaller, f"{reason}; once more with smaller batches")


class _Told:
    """How often this process was told to stop."""

    times = 0
    last = float("-inf")


@contextlib.contextmanager
def _told_to_stop() -> Iterator[_Told]:
    told = _Told()

    def count(_signal: int, _frame: FrameType | None) -> None:
        # Whoever stops a group of processes tells the child what its parent tells it, too.
        if time.monotonic() - told.last > 1:
            told.times += 1
        told.last = time.monotonic()

    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, count)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


class _Attempt:
    """A claimed job; a thread renews its lease and sees when it is to stop."""

    def __init__(self, here: Here, store: JobStore, job: Job, before: Job, told: _Told) -> None:
        assert job.lease_token is not None  # noqa: S101 - narrows the type
        self._here, self._store, self._job, self._before = here, store, job, before
        self._token, self._told = job.lease_token, told
        self._began = time.monotonic()
        self._parent = os.getppid()
        self._progress = JobProgress(stage="starting")
        self._noted = ""
        self._over = threading.Event()
        self._settled = threading.Lock()
        self._stop: Stopped | None = None
        self._is_publishing = False

    def do(self) -> None:
        watch = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        watch.start()
        try:
            self._settle_after(self._measure)
        finally:
            self._over.set()
            watch.join(_ANSWER)

    # Progress, as the work tells it

    def stage(self, text: str) -> None:
        self._check()
        self._progress = JobProgress(stage=text)

    def steps(self, text: str, total: int) -> None:
        self._check()
        self._progress = JobProgress(stage=text, total=total)

    def advance(self) -> None:
        self._check()
        self._progress = replace(self._progress, done=self._progress.done + 1)

    def note(self, text: str) -> None:
        _log.info("%s", text)
        self._noted = text

    def _check(self) -> None:
        if self._stop is not None:
            raise self._stop

    # The work

    def _measure(self) -> "Done":
        from ingest.capture import capture  # noqa: PLC0415 - imports torch
        from ingest.run import ingest  # noqa: PLC0415 - imports torch

        here, settings = self._here, load_settings()
        kind = CaptureRequest if self._job.suite == STORED_PATTERNS else IngestRequest
        request = kind.from_json(self._job.request)
        admit(request, settings)
        request = replace(request, device=self._device(request.device))
        self._require_room(request)
        if self._before.host is not None:
            self._patiently(lambda: close_orphans(here.database, [self._before], []))
        catalog = connect(here.database.url.render_as_string(hide_password=False))
        if isinstance(request, CaptureRequest):
            return [capture(catalog, request, self, publish=self._publish)]
        return ingest(catalog, request, self, publish=self._publish)

    def _device(self, asked: str) -> str:
        device = self._here.device
        if asked.startswith("cuda") and device == "cpu":
            raise UsageError(f"this job asks for {asked}, and {self._here.name} has no CUDA device")
        return "cpu" if asked == "cpu" else device

    def _require_room(self, request: Request) -> None:
        """See that the model fits, before any of it is loaded.

        Raises:
            Moved: If it does not, and a larger worker is there.
            UsageError: If it does not fit here, and nowhere else.
        """
        size = size_of(request.model, request.revision)
        if size is None:
            return
        memory = self._here.memory if request.device == self._here.device else host_memory()
        suite = self._job.suite
        lacks = _lacks(size, suite, request, request.device, memory)
        if lacks is None:
            return
        for worker in self._store.workers(alive_within=ALIVE):
            others = [queue for queue in worker.queues if queue not in self._here.queues]
            device = worker.device or "cpu"
            if (
                others
                and worker.memory
                and (device == "cpu" or self._job.request.get("device") != "cpu")
                and _lacks(size, suite, request, device, worker.memory) is None
            ):
                raise Moved(others[0], lacks)
        raise UsageError(f"{request.model} does not fit: {lacks}; no worker with more is there")

    def _publish(self, database: Database, run_id: int, results: Results, /, **rest: Any) -> None:
        """Publish unless the job is another's by now; a database that is away is waited for."""
        self._check()

        def publish() -> None:
            status, why = publishing.status(database, run_id)
            if status == "succeeded":
                return  # the database did it before, and could not say so
            if status == "failed":
                raise Superseded(why)
            publishing.publish(database, run_id, results, fence=self._fence, **rest)

        self._is_publishing = True
        try:
            self._patiently(publish)
        finally:
            self._is_publishing = False

    def _fence(self) -> None:
        self._store.beat(self._job.id, self._token, self._here.lease)

    def _patiently(self, work: Callable[[], T]) -> T:
        """What the work gives, asked for again while a database is away and the job ours."""
        deadline, pause = time.monotonic() + _PATIENCE, 0.5
        while True:
            try:
                return work()
            except AWAY as error:
                is_hurried = self._told.times > 1 or isinstance(self._stop, Superseded)
                if is_hurried or time.monotonic() > deadline:
                    raise
                _log.warning("waiting for the database: %s", error)
                self._progress = JobProgress(stage=f"waiting: {error}")
                self._over.wait(pause)
                pause = min(2 * pause, 15.0)

    # The end

    def _settle_after(self, work: "Callable[[], Done]") -> None:
        """Close the job by what becomes of the work."""
        job, token, store = self._job, self._token, self._store
        try:
            outcomes = work()
        except Stopped as stop:
            self._settle(self._closing(stop))
        except LeaseLost as error:
            self._settle(self._closing(Superseded(str(error))))
        except AWAY as error:
            self._settle(self._again(f"the database was away: {error}"))
        except HeadsError as error:
            self._settle(self._failing(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs into the job
            from ingest.run import is_out_of_memory  # noqa: PLC0415 - imports torch

            if is_out_of_memory(error):
                reason = f"out of memory ({type(error).__name__})"
                self._settle(lambda: put_back_smaller(store, job, token, reason))
            else:
                self._settle(self._failing(traceback.format_exc()))
        else:
            self._settle(lambda: self._succeed(outcomes))

    def _succeed(self, outcomes: "Done") -> Job:
        runs = sorted({run for outcome in outcomes for run in outcome.run_ids})
        why = None if outcomes else self._noted or "nothing to measure"
        return self._store.succeed(self._job.id, self._token, runs, why)

    def _closing(self, stop: Stopped) -> Callable[[], Job]:
        job, token, store = self._job, self._token, self._store
        match stop:
            case Cancelled():
                return lambda: store.cancelled(job.id, token)
            case GivenBack():
                return lambda: store.release(job.id, token, str(stop))
            case Moved():
                queue = stop.queue
                return lambda: store.move(job.id, token, queue, str(stop))
            case Orphaned():
                return self._again(str(stop))
            case TookTooLong():
                return self._failing(str(stop))
            case _:
                return self._dropping(str(stop))

    def _failing(self, error: str) -> Callable[[], Job]:
        return lambda: self._store.fail(self._job.id, self._token, error)

    def _dropping(self, why: str) -> Callable[[], Job]:
        def drop() -> Job:
            raise LeaseLost(why)

        return drop

    def _again(self, reason: str) -> Callable[[], Job]:
        return lambda: self._store.put_back(self._job.id, self._token, reason)

    def _settle(self, close: Callable[[], Job]) -> None:
        """Write how the job ended, once, whichever thread is first."""
        with self._settled:
            if self._over.is_set():
                return
            try:
                job = self._patiently(close)
            except LeaseLost as error:
                _log.warning("%s; what was measured here is dropped", error)
                return
            except AWAY as error:
                _log.warning("the job is left to its lease: %s", error)
                return
            finally:
                self._over.set()
            seconds = time.monotonic() - self._began
            is_good = job.state in {State.SUCCEEDED, State.QUEUED}
            reason = f": {job.error.splitlines()[-1]}" if job.error and not is_good else ""
            _log.log(
                logging.INFO if is_good else logging.WARNING,
                "job %d is %s after %.1f s%s",
                job.id,
                job.state,
                seconds,
                reason,
                extra={"outcome": str(job.state), "seconds": round(seconds, 3)},
            )
            if job.state == State.QUEUED and job.not_before is None:
                self._nudge(job)

    def _nudge(self, job: Job) -> None:
        nudge(celery_app(self._here.database), self._store, [job])

    # Meanwhile, in a thread of its own

    def _watch(self) -> None:
        told: JobProgress | None = None
        last = stop_at = float("-inf")
        times = 0
        stopped_at: float | None = None
        while not self._over.wait(_TICK):
            now = time.monotonic()
            if self._told.times > times:
                stop_at = now if times else now + self._here.grace
                times = self._told.times
            self._look_at_time(now, stop_at if times else None)
            due = now - last >= self._here.lease / 4
            if due or (self._progress is not told and now - last >= _NEWS):
                told, last = self._progress, now
                self._beat(told)
            if self._stop is None:
                continue
            stopped_at = stopped_at or now
            if now - stopped_at > _ANSWER and not self._is_publishing:
                self._end_process()

    def _look_at_time(self, now: float, stop_at: float | None) -> None:
        soft, hard = self._here.soft_limit, self._here.hard_limit
        took = now - self._began
        if hard is not None and took > hard:
            self._stop = TookTooLong(f"it took longer than the hard limit of {hard:g} s")
            self._end_process()
        if self._stop is not None:
            return
        if os.getppid() != self._parent:
            # Another worker may be on this device soon, and there is room for one.
            self._stop = Orphaned(f"the worker's process ({self._parent}) was killed")
        elif soft is not None and took > soft:
            self._stop = TookTooLong(f"it took longer than the soft limit of {soft:g} s")
        elif stop_at is not None and now >= stop_at:
            self._stop = GivenBack(f"{self._here.name} is stopping")

    def _beat(self, progress: JobProgress) -> None:
        try:
            beat = self._store.beat(self._job.id, self._token, self._here.lease, progress)
        except LeaseLost as error:
            self._stop = Superseded(str(error))
        except AWAY as error:
            _log.warning("no heartbeat: %s", error)
        else:
            if beat.cancel_requested and self._stop is None:
                self._stop = Cancelled("cancelled")

    def _end_process(self) -> None:
        """End work that does not answer; the worker's parent makes another child."""
        assert self._stop is not None  # noqa: S101 - narrows the type
        self._settle(self._closing(self._stop))
        logging.shutdown()
        os._exit(1)


def _lacks(size: Size, suite: str, request: Request, device: str, memory: int) -> str | None:
    """What a model needs and a device has not; None where it fits."""
    need = device_need(
        size,
        suite,
        device=device,
        dtype=request.dtype,
        is_pickled=request.allow_pickle and not _has_safetensors(request.model),
    )
    if need.total <= memory:
        return None
    return f"{suite} needs {need}, and {device} has {memory / GIB:.1f} GiB"


def _has_safetensors(model: str) -> bool:
    path = Path(model)
    return not path.is_dir() or any(path.glob("*.safetensors"))
