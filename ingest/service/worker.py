"""A worker: a Celery process that takes messages, and a child of it for each job.

The parent imports no torch and touches no GPU. Beside Celery's it has one thread, which shows that
the worker lives and heals what dead workers left, so that a lone worker needs no scheduler.
"""

import contextlib
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from billiard.util import set_pdeathsig
from celery import Celery, Task, signals
from celery.exceptions import InvalidTaskError
from celery.worker import state as celery_state
from celery.worker.request import Request
from celery.worker.strategy import default

from catalog.errors import HeadsError, LeaseLost
from catalog.jobs import JobStore, State, Worker, open_store
from ingest.service import execute
from ingest.service.app import TASK, broker_name, celery_app
from ingest.service.execute import Here
from ingest.service.heal import Healer
from ingest.service.memory import GIB

_BEAT = 5.0
"""Seconds between beats of a worker."""
_TICK = 0.5
"""Seconds between looks of a child that is done at its parent."""
_AFTER_HARD_LIMIT = 60.0
"""Seconds that a child has to end itself, before its parent does."""
_IDS = 1 << 31
"""More than databases count to in ids."""
_OOM_COUNTS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))

_log = logging.getLogger(__name__)
_forking = threading.Lock()
"""Held by whoever asks a database in the parent: a child forked meanwhile inherits its locks."""
os.register_at_fork(
    before=_forking.acquire,
    after_in_parent=_forking.release,
    after_in_child=_forking.release,
)


def work(here: Here) -> int:
    """Take jobs until told to stop; returns the exit code.

    SIGTERM or Ctrl-C: the job under way has its grace to end, and is queued again after that.
    A second one: it is queued again at once.
    """
    store = open_store(here.database)
    app = celery_app(here.database, here.queues)
    if here.hard_limit is not None:
        app.conf.task_time_limit = here.hard_limit + _AFTER_HARD_LIMIT
    _register(app, here, store)
    stopping = threading.Event()

    def forward(**_: object) -> None:
        stopping.set()
        for request in list(celery_state.active_requests):
            if request.worker_pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGTERM)

    signals.worker_shutting_down.connect(forward)
    signals.worker_process_init.connect(_outlive_threads)
    with _presence(here, store, app):
        _log.info(
            "worker %s takes jobs of %s from %s on %s (%.1f GiB)",
            here.name,
            ", ".join(here.queues),
            broker_name(app),
            here.device,
            here.memory / GIB,
        )
        worker = app.Worker(
            hostname=f"{here.name}@%h",
            queues=list(here.queues),
            loglevel=logging.getLogger().level,
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        worker.start()
    code = 0 if stopping.is_set() else worker.exitcode or 0
    _log.info("worker %s has stopped", here.name)
    return code


def _outlive_threads(**_: object) -> None:
    """Let a child go on when the thread ends that forked it, as at the start of a worker's end.

    Celery asks Linux to end it then, meaning the whole parent; a job looks after that by itself.
    """
    with contextlib.suppress(OSError):
        set_pdeathsig(0)


def _register(app: Celery, here: Here, store: JobStore) -> None:
    """Give the application its one task."""
    # Celery's own tasks send others: nobody needs them here.
    app.finalize()
    for name in list(app.tasks):
        app.tasks.unregister(name)

    class JobTask(Task):  # type: ignore[misc]  # Celery has no types
        Request = JobRequest
        Strategy = staticmethod(_strategy)

        def attend(self, request: Any) -> None:
            """A child has died: settle its job at once, before its message is sent again."""
            try:
                with _forking:
                    _settle_lost(store, int(request.args[0]), request)
            except LeaseLost:
                pass  # it was settled by the child itself, or by a reaper
            except HeadsError as error:
                _log.warning("left to the job's lease: %s", error)

    @app.task(base=JobTask, name=TASK)  # type: ignore[untyped-decorator]
    def run_job(job_id: int) -> None:
        # In the child, which has no part in its parent's database work.
        parent = os.getppid()
        try:
            execute.run(here, job_id)
        finally:
            threading.Thread(target=_end_with, args=(parent,), name="end", daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when that one has, with nobody there to hear that the job is done.

    The pool would wait half a minute for that, with all of the device's memory.
    """
    while os.getppid() == parent:
        time.sleep(_TICK)
    os._exit(0)


def _strategy(task: Task, app: Celery, consumer: Any) -> Callable[..., None]:
    """What becomes of a message: as usual where it names a job; one that does not is dropped.

    Celery takes apart what it is sent before it runs a task, and a worker ends that cannot.
    """
    usual = default(task, app, consumer)

    def receive(message: Any, *rest: Any) -> None:
        match message.payload:
            case [[int(job_id)], {**none}, {**_others}] if 0 < job_id < _IDS and not none:
                usual(message, *rest)
            case _:
                raise InvalidTaskError("it names no job")

    return receive


class JobRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A message being worked on, as the parent sees it."""

    oom_kills = 0
    """As counted when its child began."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.oom_kills = _oom_kills()
        super().on_accepted(pid, time_accepted)

    def on_failure(
        self,
        exc_info: Any,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's
        return_ok: bool = False,  # noqa: FBT001, FBT002 - Celery's
    ) -> None:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, WorkerLostError | SystemExit):
            self.task.attend(self)
        super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 - Celery's
        if not soft:
            self.task.attend(self)
        super().on_timeout(soft, timeout)


def _settle_lost(store: JobStore, job_id: int, request: Any) -> None:
    job = store.get(job_id)
    is_ours = (job.host, job.pid) == (platform.node(), request.worker_pid)
    if job.state != State.RUNNING or not is_ours or job.lease_token is None:
        return
    reason = f"its process ({job.pid} on {job.host}) was killed"
    if _oom_kills() > request.oom_kills:
        reason = f"{reason}, by the kernel for lack of memory as it seems"
        settled = execute.put_back_smaller(store, job, job.lease_token, reason)
    else:
        settled = store.put_back(job.id, job.lease_token, reason)
    _log.warning("job %d is %s: %s", job.id, settled.state, reason)


def _oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, where it tells."""
    count = 0
    for path in _OOM_COUNTS:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                count += int(value) if name == "oom_kill" else 0
    return count


@contextlib.contextmanager
def _presence(here: Here, store: JobStore, app: Celery) -> Iterator[None]:
    """Show that the worker lives, and heal, until it stops."""
    over = threading.Event()
    row = Worker(
        name=here.name,
        host=platform.node(),
        pid=os.getpid(),
        queues=list(here.queues),
        device=here.device,
        memory=here.memory,
        facts={"soft_limit": here.soft_limit, "hard_limit": here.hard_limit, "lease": here.lease},
    )
    healer = Healer(store, app, lease=here.lease)

    def show() -> None:
        is_away = False
        while True:
            try:
                with _forking:
                    store.worker_beat(row)
                    healer.heal()
                is_away = False
            except HeadsError as error:
                if not is_away:
                    _log.warning("%s", error)
                is_away = True
            if over.wait(_BEAT):
                return

    thread = threading.Thread(target=show, name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(HeadsError):
            store.worker_gone(here.name)
