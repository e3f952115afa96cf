"""Running schedules: one look each, what it finds decided on, and when to look again."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from catalog import Catalog, queries
from catalog.errors import (
    HeadsError,
    InputError,
    LeaseLost,
    LockedError,
    ModelError,
    StorageError,
    UsageError,
)
from catalog.jobs import JobStore, Submitted
from catalog.jobs.schedules import (
    DONE,
    ON_THE_HUB,
    Decision,
    Schedule,
    ScheduleItem,
    Schedules,
    ScheduleSpec,
)
from ingest.request import SUITE_NAMES, IngestRequest
from ingest.schedules.when import Timing

if TYPE_CHECKING:
    from ingest.schedules.watches import Found, Watch

Submit = Callable[[Catalog, IngestRequest, str], Sequence[Submitted]]
"""Puts a request into the queue, in the name of whoever is given last."""

_Revision = tuple[str | None, str | None]
"""A model by its name, and a commit or hash."""

_SECONDS = 10.0
"""Of one tick: the scheduler has other duties, and a long list goes on in the next."""
_PAGES = 10
"""Of one run."""
_SOON = timedelta(minutes=1)
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=30), timedelta(hours=1)
_MOST_ASKED = timedelta(days=1)
"""Of what the Hub may ask us to wait."""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided about one item, and why."""

    item: str
    revision: str
    decision: Decision
    reason: str | None = None
    job_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of a schedule."""

    name: str
    result: str
    decided: Sequence[Decided]
    error: Exception | None = None


def tick(
    store: JobStore,
    catalog: Catalog,
    now: datetime | None = None,
    submit: Submit | None = None,
) -> list[Ran]:
    """Run the schedules that are due, each once however often it was missed.

    An error in one is kept with it, and does not stop the others.

    Args:
        store: The catalog's job store.
        catalog: What the schedules are about.
        now: Instead of the store's clock.
        submit: Instead of `ingest.service.submit`.
    """
    schedules = Schedules(store)
    end = time.monotonic() + _SECONDS
    ran = []
    while time.monotonic() < end:
        moment = now or store.now()
        schedule = schedules.claim_due(moment)
        if schedule is None:
            break
        ran.append(_run(schedules, schedule, catalog, moment, submit or _submit, end))
    return ran


def run_now(
    store: JobStore,
    catalog: Catalog,
    name: str,
    now: datetime | None = None,
    submit: Submit | None = None,
) -> Ran:
    """Run a schedule whether it is due or paused; when it is due otherwise stays as it is.

    Raises:
        UsageError: If there is none of this name, or it is being run.
    """
    schedules = Schedules(store)
    moment = now or store.now()
    schedule = schedules.claim(name, moment)
    return _run(schedules, schedule, catalog, moment, submit or _submit, None)


def add(store: JobStore, spec: ScheduleSpec, now: datetime | None = None) -> Schedule:
    """Keep a schedule: with an interval it is due at once, else when its expression says.

    Raises:
        UsageError: If it says nothing that could be meant, or there is one of its name.
    """
    timing = Timing(cron=spec.cron, timezone=spec.timezone, every=spec.every)
    _watch(spec)
    moment = now or store.now()
    return Schedules(store).add(spec, moment if spec.every else timing.after(moment))


def preview(
    catalog: Catalog, spec: ScheduleSpec | Schedule, now: datetime, store: JobStore
) -> Sequence[Decided]:
    """What a run would do now, and with what reason; nothing is submitted or written.

    Args:
        catalog: What the schedule is about.
        spec: A schedule, or one to be.
        now: With time zone.
        store: Where a schedule has what it found before.

    Raises:
        ModelError: If what is to be watched is not there.
        HubBusyError: If the Hub does not answer now.
    """
    schedules = Schedules(store)
    look = _Look(
        watch=_watch(spec),
        catalog=catalog,
        now=now,
        rest=None,
        seen=lambda names: schedules.items(spec, names) if isinstance(spec, Schedule) else {},
        ingest=lambda found: _decided(found, Decision.SUBMITTED),
        keep=lambda _: None,
    )
    look.go(None)
    return look.decided


def _watch(spec: ScheduleSpec | Schedule) -> "Watch":
    # Brings torch: seconds and hundreds of megabytes, for schedulers with something to do only.
    from ingest.schedules.watches import Watch  # noqa: PLC0415

    return Watch.of(spec.kind, spec.target, spec.limits, spec.request)


def _submit(catalog: Catalog, request: IngestRequest, by: str) -> Sequence[Submitted]:
    from ingest.service.submit import submit  # noqa: PLC0415 - brings Celery

    return submit(catalog, request, submitted_by=by)


@dataclass(kw_only=True)
class _Look:
    """One look at what a schedule watches, page by page, and what has come of it so far."""

    watch: "Watch"
    catalog: Catalog
    now: datetime
    rest: str | None
    """Where it goes on."""
    seen: Callable[[Sequence[str]], dict[str, ScheduleItem]]
    """What was decided about items before."""
    ingest: Callable[["Found"], Decided]
    keep: Callable[[Sequence[Decided]], None]
    """Told of decisions that differ from those before: of a submission at once."""
    decided: list[Decided] = field(default_factory=list)
    goes_on: bool = False
    """Whether the list is longer than one look may take."""

    def go(self, end: float | None) -> None:
        """Look until the list ends, a bound is met or time is up (`end`, monotonic seconds)."""
        left = self.watch.limits.at_most
        for _ in range(_PAGES):
            page = self.watch.look(self.catalog, self.rest, self.now)
            seen = self.seen([found.item for found in page.found])
            published = _published(self.catalog)
            changed: list[Decided] = []
            for found in page.found:
                before = seen.get(found.item)
                if before and before.revision == found.revision and before.decision in DONE:
                    continue
                decided = self._decide(found, published, has_turn=left > 0)
                self.decided.append(decided)
                if not _is_same(decided, before):
                    changed.append(decided)
                if decided.decision is Decision.SUBMITTED:
                    left -= 1
                    self.keep(changed)
                    changed = []
            self.keep(changed)
            # Where a run is full, the next begins anew: what is new comes first.
            self.rest = page.rest if left > 0 else None
            if self.rest is None:
                return
            if end is not None and time.monotonic() > end:
                break
        self.goes_on = True

    def _decide(
        self, found: "Found", published: Mapping[_Revision, set[str]], *, has_turn: bool
    ) -> Decided:
        from ingest.schedules.folders import UnsettledError  # noqa: PLC0415 - brings torch

        measured = published.get((found.request.name, found.revision), set())
        if _suites(found.request) <= measured:
            return _decided(found, Decision.KNOWN)
        try:
            found.require()
        except UnsettledError as error:
            return _decided(found, Decision.LATER, str(error))
        except ModelError as error:
            return _decided(found, Decision.REFUSED, str(error))
        if not has_turn:
            return _decided(found, Decision.LATER, "one run submits no more")
        return self.ingest(found)

    def told(self) -> str:
        counts = Counter(one.decision for one in self.decided)
        told = [
            f"{decision} {counts[decision]}"
            for decision in Decision
            if counts[decision] or decision in {Decision.SUBMITTED, Decision.REFUSED}
        ]
        return ", ".join(told) + ("; the list goes on" if self.goes_on else "")


def _run(
    schedules: Schedules,
    schedule: Schedule,
    catalog: Catalog,
    now: datetime,
    submit: Submit,
    end: float | None,
) -> Ran:
    """Run a claimed schedule and give it back."""
    from ingest.schedules.hub import HubBusyError  # noqa: PLC0415 - brings the Hub's client

    look: _Look | None = None
    error: Exception | None = None
    failures, next_run_at = 0, now + _LONGEST_WAIT
    rest: str | None = None
    try:
        next_run_at = _regular(schedule, now)
        look = _Look(
            watch=_watch(schedule),
            catalog=catalog,
            now=now,
            rest=schedule.rest,
            seen=lambda names: schedules.items(schedule, names),
            ingest=lambda found: _ingest(found, catalog, submit, schedule),
            keep=lambda decided: _keep(schedules, schedule, decided, now),
        )
        look.go(end)
        result, rest = look.told(), look.rest
        if look.goes_on:
            next_run_at = min(next_run_at, now + _SOON)
    except (HubBusyError, LockedError, StorageError) as busy:
        asked = busy.retry_after if isinstance(busy, HubBusyError) else None
        error, failures = busy, schedule.failures + 1
        rest = look.rest if look else None
        next_run_at = now + _wait(asked, failures)
        if asked is not None:
            schedules.postpone(ON_THE_HUB, next_run_at)
        result = f"error: {busy}; tried again at {next_run_at:%Y-%m-%d %H:%M:%S} UTC"
    except Exception as failed:  # noqa: BLE001 - one schedule must not stop the others
        error, result = failed, f"error: {_sentence(failed)}"
    except BaseException:
        schedules.release(schedule)
        raise
    try:
        schedules.finish(
            schedule,
            now=now,
            next_run_at=next_run_at,
            result=result,
            rest=rest,
            failures=failures,
        )
    except LeaseLost as lost:
        error, result = error or lost, str(lost)
    return Ran(name=schedule.name, result=result, decided=look.decided if look else (), error=error)


def _ingest(found: "Found", catalog: Catalog, submit: Submit, schedule: Schedule) -> Decided:
    try:
        jobs = submit(catalog, found.request, f"schedule {schedule.name}")
    except (ModelError, InputError, UsageError) as error:
        return _decided(found, Decision.REFUSED, str(error))
    if found.request.revision is None and not any(one.is_new for one in jobs):
        # The one under way may have read the files as they were before.
        return _decided(found, Decision.LATER, "a job for it is under way")
    return _decided(found, Decision.SUBMITTED, job_ids=[one.job.id for one in jobs])


def _keep(
    schedules: Schedules, schedule: Schedule, decided: Sequence[Decided], now: datetime
) -> None:
    items = [
        ScheduleItem(
            schedule_id=schedule.id,
            item=one.item,
            revision=one.revision,
            decision=one.decision,
            reason=one.reason,
            job_ids=list(one.job_ids),
            decided_at=now,
        )
        for one in decided
    ]
    schedules.keep(schedule, items, now)


def _is_same(decided: Decided, before: ScheduleItem | None) -> bool:
    return before is not None and (before.revision, before.decision, before.reason) == (
        decided.revision,
        decided.decision,
        decided.reason,
    )


def _decided(
    found: "Found", decision: Decision, reason: str | None = None, job_ids: Sequence[int] = ()
) -> Decided:
    return Decided(
        item=found.item,
        revision=found.revision,
        decision=decision,
        reason=reason,
        job_ids=tuple(job_ids),
    )


def _suites(request: IngestRequest) -> set[str]:
    return set(request.suites or SUITE_NAMES)


def _published(catalog: Catalog) -> dict[_Revision, set[str]]:
    published: dict[_Revision, set[str]] = {}
    if catalog.database.exists:
        for row in queries.published_suites(catalog):
            published.setdefault((row["model"], row["revision"]), set()).add(row["suite"])
    return published


def _regular(schedule: Schedule, now: datetime) -> datetime:
    if schedule.next_run_at > now:
        return schedule.next_run_at
    every = None if schedule.every is None else timedelta(seconds=schedule.every)
    timing = Timing(cron=schedule.cron, timezone=schedule.timezone, every=every)
    return timing.after(now, due=schedule.next_run_at)


def _wait(asked: float | None, failures: int) -> timedelta:
    doubled = min(_FIRST_WAIT * 2 ** min(failures - 1, 30), _LONGEST_WAIT)
    return max(doubled, min(timedelta(seconds=asked or 0), _MOST_ASKED))


def _sentence(error: Exception) -> str:
    if isinstance(error, HeadsError):
        return str(error)
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}"
