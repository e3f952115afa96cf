"""What the service stands on, looked at part by part: each is well, or needs somebody.

Nothing is imported that a part does not need, so that all of it works where only some extras are
installed; and nothing is changed. What is found never holds a password or token.
"""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from catalog import schema
from catalog.database import Database
from catalog.errors import HeadsError, UsageError
from catalog.jobs import Job, JobStore, State, Worker, open_store
from catalog.jobs.connections import JobsDatabase
from catalog.jobs.presence import ALIVE
from catalog.settings import Settings, load_settings
from catalog.urls import shown
from ingest.service.memory import device_memory

GIB = 2**30
_RECENT = timedelta(days=1)
_ANSWER = 10.0
"""Seconds for others to answer."""
_SCARCE, _TOO_LITTLE = 10 * GIB, GIB
"""Free bytes of a disk."""
_NAMED = 3
"""Jobs that are named one by one."""
_SMALL_MEMORY = 2 * GIB
_PACKAGES = ("duckdb", "sqlalchemy", "psycopg", "celery", "transformers", "streamlit")


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    remedy: str | None = None
    """What to do; None where it is well."""


@dataclass(frozen=True)
class Patient:
    """The service as this machine sees it."""

    database: Database
    is_here: bool = False
    """Only this machine's workers count."""

    @property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def store(self) -> JobStore | None:
        """None where nobody has ever queued a job; looking must not make the file, or change it."""
        jobs = JobsDatabase(self.database)
        if not jobs.exists:
            return None
        with jobs.connect(writable=False) as connection:
            schema.require_current(connection, jobs.name, schema.JOBS)
        return open_store(self.database)

    @cached_property
    def waiting(self) -> Sequence[Job]:
        return self.store.list(states=[State.QUEUED]) if self.store else []

    @cached_property
    def alive(self) -> Sequence[Worker]:
        return self.store.workers(alive_within=ALIVE) if self.store else []


Check = Callable[[Patient], Iterator[Finding]]


def examine(
    patient: Patient, checks: Sequence[str] = (), more: Mapping[str, Check] | None = None
) -> Iterator[tuple[str, Finding]]:
    """Look at all parts, or at those named, one after the other.

    Args:
        patient: The service.
        checks: By name; all where none is named.
        more: Checks of parts that this package does not know.

    Yields:
        The check and what it found. A check that cannot be made is itself a finding.

    Raises:
        UsageError: If there is no such check.
    """
    known = {**CHECKS, **(more or {})}
    for name in checks:
        if name not in known:
            raise UsageError(f"no check {name!r}; there are {', '.join(known)}")
    for name in checks or known:
        try:
            for finding in known[name](patient):
                yield name, finding
        except HeadsError as error:
            yield name, Finding(Level.FAIL, str(error), "as it says")
        except ImportError as error:
            yield (
                name,
                Finding(
                    Level.WARN,
                    f"cannot be told without the package {error.name}",
                    "pip install 'head-catalog[service]'",
                ),
            )


def _packages(_: Patient) -> Iterator[Finding]:
    found = [f"{name} {known}" for name in _PACKAGES if (known := _version(name))]
    python = f"Python {platform.python_version()}"
    yield Finding(Level.OK, ", ".join([f"head-catalog {version('head-catalog')}", python, *found]))
    if torch := _version("torch"):
        yield Finding(Level.OK, f"torch {torch}")
    else:
        yield Finding(
            Level.WARN,
            "torch is not installed: no model can be measured on this machine",
            "pip install 'head-catalog[ingest]', unless this machine only shows",
        )


def _database(patient: Patient) -> Iterator[Finding]:
    database = patient.database
    started = time.monotonic()
    with database.reading() as connection:
        schema.require_current(connection, database.name)
    took = 1e3 * (time.monotonic() - started)
    yield Finding(Level.OK, f"{database.name} at schema {schema.head()}, opened in {took:.0f} ms")


def _jobs(patient: Patient) -> Iterator[Finding]:
    store = patient.store
    if store is None:
        yield Finding(Level.OK, "no job was ever queued")
        return
    counts: dict[str, int] = {}
    for (_queue, state), number in store.count().items():
        counts[state] = counts.get(state, 0) + number
    told = ", ".join(f"{counts[state]} {state}" for state in State if counts.get(state))
    yield Finding(Level.OK, f"{store.name}: {told or 'no jobs'}")
    now = store.now()
    running = store.list(states=[State.RUNNING])
    late = [job for job in running if job.lease_expires_at and job.lease_expires_at < now]
    if late:
        yield Finding(
            Level.WARN,
            f"{_jobs_named(late)}: no worker has been heard of since the lease ran out",
            "a scheduler sends them again: see that one runs",
        )
    failed = [
        job
        for job in store.list(states=[State.FAILED], limit=100)
        if job.finished_at and job.finished_at > now - _RECENT
    ]
    if failed:
        yield Finding(
            Level.WARN,
            f"{_jobs_named(failed)} failed within a day",
            f"`heads jobs show {failed[0].id}` tells why, `heads jobs retry {failed[0].id}` "
            "tries again",
        )


def _broker(patient: Patient) -> Iterator[Finding]:
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - of an extra

    from ingest.service.app import broker_name, celery_app, waiting  # noqa: PLC0415

    if patient.store is None and patient.settings.broker_url is None:
        yield Finding(Level.OK, "a folder beside the catalog, once there are jobs")
        return
    app = celery_app(patient.database)
    queues = {queue for worker in patient.alive for queue in worker.queues} or {"cpu", "gpu"}
    try:
        messages = waiting(app, sorted(queues))
    except (OperationalError, OSError) as error:
        yield Finding(
            Level.FAIL,
            f"{shown(broker_name(app))} cannot be reached ({type(error).__name__})",
            "start it, or correct HEADS_BROKER_URL: host, port, password",
        )
        return
    told = ", ".join(f"{number} in {queue}" for queue, number in messages.items())
    yield Finding(Level.OK, f"{shown(broker_name(app))}: messages {told}")


def _workers(patient: Patient) -> Iterator[Finding]:
    store = patient.store
    now = store.now() if store else None
    known = list(store.workers()) if store else []
    if patient.is_here:
        known = [worker for worker in known if worker.host == socket.gethostname()]
    names = {worker.name for worker in patient.alive}
    alive = [worker for worker in known if worker.name in names]
    for worker in known:
        assert now is not None  # noqa: S101 - narrows the type
        age = (now - worker.heartbeat_at).total_seconds()
        told = f"{worker.name} ({worker.device}, {', '.join(worker.queues)}), heard of {age:.0f} s"
        if worker.name in names:
            yield Finding(Level.OK, f"{told} ago")
        else:
            yield Finding(
                Level.WARN,
                f"{told} ago: dead, or cut off",
                "start it again, or leave it: it is forgotten after a day",
            )
    if patient.is_here:
        if not alive:
            yield Finding(Level.FAIL, "no worker lives on this machine", "start `heads worker`")
        return
    served = {queue for worker in alive for queue in worker.queues}
    unserved = [job for job in patient.waiting if job.queue not in served]
    for queue in sorted({job.queue for job in unserved}):
        jobs = [job for job in unserved if job.queue == queue]
        yield Finding(
            Level.FAIL,
            f"{_jobs_named(jobs)} in the queue {queue}, which no worker serves",
            f"start `heads worker --queues {queue}`",
        )
    if not alive and not unserved:
        yield Finding(
            Level.WARN, "no worker lives", "start `heads up` or `heads worker` to run queued jobs"
        )


def _scheduler(patient: Patient) -> Iterator[Finding]:
    from ingest.service.scheduler import LEADERSHIP  # noqa: PLC0415 - of an extra

    leader = patient.store.leader(LEADERSHIP) if patient.store else None
    if leader:
        yield Finding(Level.OK, f"{leader} leads")
        return
    yield Finding(
        Level.FAIL if patient.waiting else Level.WARN,
        "no scheduler leads: what dead workers left is not sent again, and schedules rest",
        "start `heads up` or `heads scheduler`",
    )


def _disk(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    places = {"unfinished runs (HEADS_WORK_DIR)": settings.work_dir}
    if patient.database.path:
        places["the catalog"] = patient.database.path.resolve().parent
    with contextlib.suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - of an extra

        places["models of the Hub (HF_HOME)"] = Path(HF_HUB_CACHE)
    for what, folder in places.items():
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        free = shutil.disk_usage(there).free
        told = f"{folder}, for {what}: {free / GIB:.1f} GiB free"
        if not os.access(there, os.W_OK):
            yield Finding(
                Level.FAIL, f"{told}, not writable", "let this user write there, or name another"
            )
        elif free < _SCARCE:
            level = Level.FAIL if free < _TOO_LITTLE else Level.WARN
            yield Finding(level, told, "make room, or name a folder on a larger disk")
        else:
            yield Finding(Level.OK, told)


def _memory(_: Patient) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    told = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < _SMALL_MEMORY:
        yield Finding(Level.WARN, told, "end other programs; workers refuse what cannot fit")
    else:
        yield Finding(Level.OK, told)


def _gpu(_: Patient) -> Iterator[Finding]:
    asked = "index,name,memory.used,memory.total,driver_version"
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            check=True,
        )
    except FileNotFoundError:
        yield Finding(Level.OK, "no NVIDIA driver: jobs run on processors")
        return
    except (subprocess.SubprocessError, OSError) as error:
        yield Finding(
            Level.WARN,
            f"nvidia-smi does not answer ({type(error).__name__})",
            "restart the driver, or this machine",
        )
        return
    for line in done.stdout.splitlines():
        index, name, used, total, driver = (field.strip() for field in line.split(","))
        yield Finding(Level.OK, f"cuda:{index} {name}, {used} of {total} MiB used, driver {driver}")
    torch = _version("torch")
    if torch is None:
        return
    # In a process of its own, since to have touched CUDA is to hold memory of it.
    try:
        device_memory("cuda:0")
    except UsageError as error:
        yield Finding(
            Level.WARN,
            f"torch {torch} cannot use cuda:0: {error}",
            "install the build of torch that suits the driver",
        )
    else:
        yield Finding(Level.OK, f"torch {torch} uses cuda:0")


def _hub(_: Patient) -> Iterator[Finding]:
    from huggingface_hub import constants, get_session, get_token  # noqa: PLC0415 - of an extra
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415

    if constants.is_offline_mode():
        yield Finding(Level.OK, "offline, as HF_HUB_OFFLINE says: only models of this machine")
        return
    token = get_token()
    if token is None:
        yield Finding(Level.OK, "no token: models that ask for one cannot be fetched")
        return
    place = f"{constants.ENDPOINT}/api/whoami-v2"
    try:
        answer = get_session().get(place, headers=build_hf_headers(token=token), timeout=_ANSWER)
        name = answer.json()["name"] if answer.status_code == HTTPStatus.OK else None
    except Exception as error:  # noqa: BLE001 - whose text may hold the token
        yield Finding(
            Level.WARN,
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}): "
            "only models of this machine",
            "see to the network, or set HF_HUB_OFFLINE=1",
        )
        return
    if name is not None:
        yield Finding(Level.OK, f"{constants.ENDPOINT} knows the token, as {name}'s")
    elif answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        yield Finding(
            Level.FAIL,
            f"{constants.ENDPOINT} does not accept the token",
            "renew it, and set HF_TOKEN or run `hf auth login`",
        )
    else:
        yield Finding(
            Level.WARN,
            f"{constants.ENDPOINT} answered {answer.status_code}",
            "try again in a few minutes",
        )


CHECKS: Mapping[str, Check] = {
    "packages": _packages,
    "database": _database,
    "jobs": _jobs,
    "broker": _broker,
    "workers": _workers,
    "scheduler": _scheduler,
    "disk": _disk,
    "memory": _memory,
    "gpu": _gpu,
    "hub": _hub,
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _jobs_named(jobs: Sequence[Job]) -> str:
    named = ", ".join(str(job.id) for job in jobs[:_NAMED])
    more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
    return f"{'job' if len(jobs) == 1 else 'jobs'} {named}{more}"
