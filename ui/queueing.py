"""Handing work to the service, where the packages that it needs are installed."""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from catalog import Catalog, HeadsError, Result, pattern_rows
from catalog.database import Database
from catalog.errors import MissingExtraError, UsageError
from catalog.jobs import Job, JobStore, Schedules, Submitted, open_store
from catalog.jobs.connections import JobsDatabase
from catalog.jobs.schedules import Kind, Schedule, ScheduleSpec
from catalog.settings import load_settings
from catalog.sources import Checkpoint

STORED_PATTERNS = pattern_rows.SUITE
SUITES = ("relations", "weights", "salient", "patterns", "dynamic")
DEVICES = ("auto", "cpu", "cuda")
_DECIDED = pa.schema(
    [
        ("item", pa.string()),
        ("revision", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
    ]
)
_asking = ThreadPoolExecutor(max_workers=2, thread_name_prefix="broker")
"""Names are looked up for as long as the system likes; who waits for the page does not."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A schedule as somebody writes it into a form; what is left empty is not meant."""

    name: str
    kind: Kind
    target: str = ""
    """A Hub id, path, author, slug or folder, as the kind says."""
    search: str = ""
    """Of models of the Hub."""
    every: str = ""
    cron: str = ""
    timezone: str = "UTC"
    suites: Sequence[str] = ()
    device: str = "auto"
    at_most: int = 10

    def spec(self, by: str = "user") -> ScheduleSpec:
        """The schedule to be, as `by` adds it.

        Raises:
            UsageError: If something is missing, or cannot be meant.
            MissingExtraError: If the service is not installed.
        """
        target, name = self.target.strip(), self.name.strip()
        if not name:
            raise UsageError("name the schedule, so that it can be paused and removed")
        targets: dict[Kind, dict[str, Any]] = {
            Kind.MODEL: {"model": target, "revision": None},
            Kind.HUB: {"author": target or None, "search": self.search.strip() or None},
            Kind.COLLECTION: {"collection": target},
            Kind.FOLDER: {"folder": target},
            Kind.STALE: {},
        }
        if self.kind is not Kind.STALE and not any(targets[self.kind].values()):
            raise UsageError(f"say which {_WATCHED[self.kind]} the schedule shall watch")
        request = {"suites": list(self.suites), "device": self.device}
        if self.kind in {Kind.MODEL, Kind.FOLDER}:
            _admit(target)
        every = self.every.strip()
        return ScheduleSpec(
            name=name,
            kind=self.kind,
            target=targets[self.kind],
            cron=self.cron.strip() or None,
            timezone=self.timezone.strip() or "UTC",
            every=_schedules().interval(every) if every else None,
            request=request,
            limits={"at_most": self.at_most},
            added_by=by,
        )


_WATCHED = {
    Kind.MODEL: "model",
    Kind.HUB: "organisation, or words of a name,",
    Kind.COLLECTION: "collection",
    Kind.FOLDER: "folder",
}


def find_store(database: Database) -> JobStore | None:
    """The job store, if anybody has ever queued anything: who only looks makes no file.

    Raises:
        SchemaError: If its tables are absent, older or newer than this release's.
        StorageError: If the database is away.
    """
    return open_store(database) if JobsDatabase(database).exists else None


def trouble(database: Database, *, patience: float = 2.0) -> str | None:
    """Why workers cannot be told of jobs from here, with what to do; None where they can.

    Args:
        database: The catalog.
        patience: Seconds for the broker to answer.
    """
    try:
        url = load_settings().broker_url
        if url is None and database.path is not None:
            return None
        service = _service("ingest.service.app")
        app = service.celery_app(database)
    except HeadsError as error:
        return str(error)
    asked = _asking.submit(service.reach, app, patience)
    try:
        is_up = asked.result(patience)
    except TimeoutError:
        is_up = False
    if is_up:
        return None
    return (
        f"the broker ({service.broker_name(app)}) does not answer; jobs are kept, and begin when "
        "it is up: start it, or correct HEADS_BROKER_URL"
    )


def nudge(database: Database, store: JobStore, job: Job) -> None:
    """Tell workers of a job at once; where that cannot be done from here, the scheduler will."""
    with contextlib.suppress(ModuleNotFoundError, HeadsError):
        service = importlib.import_module("ingest.service.app")
        service.nudge(service.celery_app(database), store, [job])


def submit(
    catalog: Catalog,
    model: str,
    suites: Sequence[str],
    device: str,
    *,
    by: str,
    tell: Callable[[str], object],
) -> list[Submitted]:
    """Queue the suites of a model, all that can be measured where none is named.

    Args:
        catalog: Where the results will be published.
        model: A Hub id, or a path on the workers' machine.
        suites: Of `SUITES`.
        device: Of `DEVICES`.
        by: Who asks, as `Permission.require` says.
        tell: Told what a user should know, such as that the broker is down.

    Raises:
        UsageError: If no model is named, or the catalog is on a server and no broker is set.
        MissingExtraError: If the service is not installed.
        StorageError: If the job store cannot be written.
    """
    if not model.strip():
        raise UsageError("name a model: a Hub id, or a path on the workers' machine")
    service = _service("ingest.service.submit")
    request = service.IngestRequest(model=model.strip(), suites=tuple(suites), device=device)
    done: list[Submitted] = service.submit(catalog, request, submitted_by=by, tell=tell)
    return done


def submit_patterns(
    catalog: Catalog,
    name: str,
    checkpoint: Checkpoint,
    heads: str,
    prompt: str,
    *,
    by: str,
    tell: Callable[[str], object],
) -> Submitted:
    """Queue the storing of a model's patterns on a prompt.

    Args:
        catalog: Where the patterns will be published.
        name: What the catalog calls the model.
        checkpoint: Where workers find it.
        heads: Such as `L5H5,L6H9`, or `L5` for a whole layer.
        prompt: A text.
        by: Who asks, as `Permission.require` says.
        tell: Told what a user should know, such as that the broker is down.

    Raises:
        UsageError: If what should be heads is none, or the catalog is on a server and no broker is
            set.
        MissingExtraError: If the service is not installed.
        StorageError: If the job store cannot be written.
    """
    service = _service("ingest.service.submit")
    request = service.CaptureRequest(
        model=checkpoint.model,
        name=name,
        revision=checkpoint.revision,
        heads=heads,
        prompts=(prompt,),
    )
    done: Submitted = service.submit_patterns(catalog, request, submitted_by=by, tell=tell)
    return done


def add_schedule(catalog: Catalog, wish: Wish, *, by: str = "user") -> Schedule:
    """Keep a schedule.

    Args:
        catalog: Whose job store keeps it.
        wish: What it shall be.
        by: Who asks, as `Permission.require` says.

    Raises:
        UsageError: If it cannot be meant, or there is one of its name.
        MissingExtraError: If the service is not installed.
        StorageError: If the job store cannot be written.
    """
    added: Schedule = _schedules().add(open_store(catalog.database), wish.spec(by))
    return added


def preview(catalog: Catalog, what: Wish | str) -> Result:
    """What a run of a schedule, of this name or to be, would do now; nothing is done.

    Returns:
        item, revision, decision, reason.

    Raises:
        UsageError: If there is no such schedule, or it cannot be meant.
        MissingExtraError: If the service is not installed.
        ModelError: If what it watches is not there.
    """
    store = open_store(catalog.database)
    spec = Schedules(store).get(what) if isinstance(what, str) else what.spec()
    return decisions(_schedules().preview(catalog, spec, store.now(), store), is_done=False)


def run_schedule(catalog: Catalog, name: str, *, by: str) -> str:
    """Run a schedule now, whether it is due or paused.

    Args:
        catalog: What it is about.
        name: Of the schedule.
        by: Who asks, as `Permission.require` says.

    Returns:
        What came of it, in a line.

    Raises:
        HeadsError: If there is none of this name, it is being run, or it failed.
    """
    submitting = _service("ingest.service.submit").submit

    def submit_for(one: Catalog, request: Any, schedule: str) -> Sequence[Submitted]:
        done: Sequence[Submitted] = submitting(one, request, submitted_by=f"{schedule}, by {by}")
        return done

    ran = _schedules().run_now(open_store(catalog.database), catalog, name, submit=submit_for)
    if ran.error is not None:
        raise ran.error if isinstance(ran.error, HeadsError) else HeadsError(ran.result)
    return str(ran.result)


def decisions(decided: Iterable[Any], *, is_done: bool) -> Result:
    """What a run of a schedule decided, or would decide, as a table."""
    words = {} if is_done else {"submitted": "would submit"}
    rows = [
        {
            "item": one.item,
            "revision": one.revision,
            "decision": words.get(one.decision, one.decision),
            "reason": one.reason,
        }
        for one in decided
    ]
    return Result(pa.Table.from_pylist(rows, schema=_DECIDED))


def _admit(path: str) -> None:
    """Refuse what workers would refuse to read, before it is looked at from here."""
    guard = _service("ingest.service.guard")
    request = _service("ingest.request").IngestRequest(model=path)
    guard.admit(request, load_settings())


def _schedules() -> ModuleType:
    return _service("ingest.schedules")


def _service(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"queueing needs the package {error.name}; "
            "install it with `pip install 'head-catalog[service]'`"
        ) from error
