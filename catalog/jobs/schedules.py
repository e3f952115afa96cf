"""Schedules: what is ingested again and again, when, and what has come of it so far.

A schedule belongs to whoever has claimed it, for some minutes; a claim that is not kept up runs
out, so that what a dead scheduler left is taken up by the next. What was found is kept item by
item, so that nothing is ingested twice however often it is found.
"""

import contextlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import pyarrow as pa
from sqlalchemy import ForeignKey, Index, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from catalog.errors import LeaseLost, UsageError
from catalog.jobs.orm import Base
from catalog.jobs.store import JobStore
from catalog.sql import Result

CLAIM = timedelta(minutes=5)
"""How long a claim lasts after its holder was last heard of."""

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60}


class Kind(StrEnum):
    """What a schedule watches."""

    MODEL = "model"
    """One model, for new revisions. Target: `model`, `revision` (a branch; None: the main one)."""
    HUB = "hub"
    """Models of the Hub. Target: `author`, `search`, of which one may be None."""
    COLLECTION = "collection"
    """Models of a collection of the Hub. Target: `collection`, its slug."""
    FOLDER = "folder"
    """Folders and GGUF files in a folder. Target: `folder`, its absolute path."""
    STALE = "stale"
    """Published scores of older versions of metrics. No target."""


ON_THE_HUB = (Kind.MODEL, Kind.HUB, Kind.COLLECTION)


class Decision(StrEnum):
    """What was done about an item."""

    SUBMITTED = "submitted"
    KNOWN = "known"
    """The catalog has it."""
    REFUSED = "refused"
    LATER = "later"
    """Nothing is against it but its turn."""


DONE = (Decision.SUBMITTED, Decision.KNOWN)


class Schedule(Base):
    """What to watch, when, and what to measure on what is found."""

    __tablename__ = "schedule"
    __table_args__ = (Index("uq_schedule_name", "name", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    """One of `Kind`."""
    target: Mapped[dict[str, Any]]
    cron: Mapped[str | None]
    timezone: Mapped[str]
    """Of the cron expression."""
    every: Mapped[int | None]
    """Seconds; NULL where there is a cron expression."""
    request: Mapped[dict[str, Any]]
    """What is measured: fields of an ingest's request but for the model."""
    limits: Mapped[dict[str, Any]]
    is_paused: Mapped[bool]
    added_by: Mapped[str | None]
    """NULL of those that are older than this column."""
    created_at: Mapped[datetime]
    last_run_at: Mapped[datetime | None]
    next_run_at: Mapped[datetime]
    last_result: Mapped[str | None]
    failures: Mapped[int]
    """Runs in a row in which the Hub or the catalog was busy."""
    rest: Mapped[str | None]
    """Where the next run goes on in a long list; NULL: at its beginning."""
    claim_token: Mapped[str | None]
    claimed_until: Mapped[datetime | None]

    @property
    def watches(self) -> str:
        """What people call its target."""
        match self.kind:
            case Kind.MODEL:
                revision = self.target["revision"]
                return f"{self.target['model']}@{revision}" if revision else self.target["model"]
            case Kind.HUB:
                author, search = self.target["author"], self.target["search"]
                of = f" of {author}" if author else ""
                return f"models{of}" + (f" named {search!r}" if search else "")
            case Kind.STALE:
                return "versions of metrics"
            case _:
                return str(self.target[self.kind])

    @property
    def when(self) -> str:
        if self.every is None:
            return f"{self.cron} {self.timezone}"
        unit = next(unit for unit, seconds in _UNITS.items() if not self.every % seconds)
        return f"every {self.every // _UNITS[unit]}{unit}"


class ScheduleItem(Base):
    """Something that a schedule has found, as it was decided on last."""

    __tablename__ = "schedule_item"

    schedule_id: Mapped[int] = mapped_column(
        ForeignKey("schedule.id"), primary_key=True, autoincrement=False
    )
    item: Mapped[str] = mapped_column(primary_key=True)
    """A Hub id, a path, or a model and suite."""
    revision: Mapped[str]
    """A commit, a fingerprint of files, or versions of metrics: another one is something new."""
    decision: Mapped[str]
    """One of `Decision`."""
    reason: Mapped[str | None]
    job_ids: Mapped[list[int]]
    decided_at: Mapped[datetime]


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """A schedule to be."""

    name: str
    kind: Kind
    target: dict[str, Any] = field(default_factory=dict)
    cron: str | None = None
    timezone: str = "UTC"
    every: timedelta | None = None
    request: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    added_by: str = "user"


class Schedules:
    """The schedules in a job store; every method is one transaction."""

    def __init__(self, store: JobStore) -> None:
        """Wrap an open job store."""
        self._store = store

    def __repr__(self) -> str:
        return f"<Schedules of {self._store!r}>"

    # Asking

    def get(self, name: str) -> Schedule:
        """One schedule.

        Raises:
            UsageError: If there is none of this name.
        """
        with self._reading() as session:
            return _named(session, name)

    def list(self) -> Sequence[Schedule]:
        """All schedules, by name."""
        with self._reading() as session:
            return session.scalars(select(Schedule).order_by(Schedule.name)).all()

    def items(
        self, schedule: Schedule, names: Iterable[str] | None = None
    ) -> dict[str, ScheduleItem]:
        """What a schedule has found, by item; `names`: only these."""
        query = select(ScheduleItem).where(ScheduleItem.schedule_id == schedule.id)
        if names is not None:
            query = query.where(ScheduleItem.item.in_(tuple(names)))
        with self._reading() as session:
            return {found.item: found for found in session.scalars(query)}

    # What users ask for

    def add(self, spec: ScheduleSpec, next_run_at: datetime) -> Schedule:
        """Add a schedule, to run for the first time at `next_run_at`.

        Raises:
            UsageError: If there is one of this name.
        """
        schedule = Schedule(
            name=spec.name,
            kind=spec.kind,
            target=spec.target,
            cron=spec.cron,
            timezone=spec.timezone,
            every=None if spec.every is None else int(spec.every.total_seconds()),
            request=spec.request,
            limits=spec.limits,
            is_paused=False,
            added_by=spec.added_by,
            created_at=self._store.now(),
            next_run_at=next_run_at,
            failures=0,
        )
        try:
            with self._writing() as session:
                session.add(schedule)
                session.flush()
        except IntegrityError:
            raise UsageError(
                f"there is a schedule {spec.name!r} already; remove it first, or take another name"
            ) from None
        return schedule

    def remove(self, name: str) -> None:
        """Forget a schedule and what it has found; jobs that it has submitted go on.

        Raises:
            UsageError: If there is none of this name.
        """
        with self._writing() as session:
            schedule = _named(session, name, for_update=True)
            session.execute(delete(ScheduleItem).where(ScheduleItem.schedule_id == schedule.id))
            session.delete(schedule)

    def pause(self, name: str, *, is_paused: bool = True) -> Schedule:
        """Let a schedule rest, or go on; one whose time has passed meanwhile is due once.

        Raises:
            UsageError: If there is none of this name.
        """
        with self._writing() as session:
            schedule = _named(session, name, for_update=True)
            schedule.is_paused = is_paused
            return schedule

    # What a scheduler does

    def claim_due(self, now: datetime) -> Schedule | None:
        """Take the schedule that has been due for longest and is nobody else's, if there is one."""
        with self._writing() as session:
            query = (
                select(Schedule)
                .where(Schedule.next_run_at <= now, ~Schedule.is_paused, _is_free(now))
                .order_by(Schedule.next_run_at, Schedule.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            schedule = session.scalar(query)
            return schedule and _claimed(schedule, now)

    def claim(self, name: str, now: datetime) -> Schedule:
        """Take a schedule whether it is due or not, and though it be paused.

        Raises:
            UsageError: If there is none of this name, or it is being run.
        """
        with self._writing() as session:
            schedule = _named(session, name, for_update=True)
            if schedule.claimed_until is not None and schedule.claimed_until >= now:
                raise UsageError(f"schedule {name!r} is being run now; see `heads schedule show`")
            return _claimed(schedule, now)

    def keep(self, schedule: Schedule, items: Iterable[ScheduleItem], now: datetime) -> None:
        """Write down what was decided, and keep up the claim.

        Raises:
            LeaseLost: If the schedule is no longer the holder's.
        """
        with self._writing() as session:
            _held(session, schedule).claimed_until = now + CLAIM
            for item in items:
                session.merge(item)

    def finish(
        self,
        schedule: Schedule,
        *,
        now: datetime,
        next_run_at: datetime,
        result: str,
        rest: str | None = None,
        failures: int = 0,
    ) -> None:
        """Give a claimed schedule back, with what came of it.

        Raises:
            LeaseLost: If the schedule is no longer the holder's.
        """
        with self._writing() as session:
            row = _held(session, schedule)
            row.last_run_at, row.next_run_at, row.last_result = now, next_run_at, result
            row.rest, row.failures = rest, failures
            row.claim_token = row.claimed_until = None

    def release(self, schedule: Schedule) -> None:
        """Give a claimed schedule back as it was, if it is still the holder's."""
        with self._writing() as session, contextlib.suppress(LeaseLost):
            row = _held(session, schedule)
            row.claim_token = row.claimed_until = None

    def postpone(self, kinds: Iterable[Kind], until: datetime) -> None:
        """Let no schedule of these kinds be due before then."""
        with self._writing() as session:
            session.execute(
                update(Schedule)
                .where(Schedule.kind.in_(tuple(kinds)), Schedule.next_run_at < until)
                .values(next_run_at=until)
            )

    # How

    def _reading(self) -> contextlib.AbstractContextManager[Session]:
        return self._store.database.session(writable=False)

    def _writing(self) -> contextlib.AbstractContextManager[Session]:
        return self._store.database.session(writable=True)


def listing(schedules: Schedules) -> Result:
    """All schedules as a table, by name.

    Returns:
        schedule, kind, watches, when, paused (bool), last_run and next_run (UTC; `next_run` NULL
        while paused), last_result, by (who added it; NULL where nobody wrote it down); one row per
        schedule.
    """
    rows = [
        {
            "schedule": one.name,
            "kind": one.kind,
            "watches": one.watches,
            "when": one.when,
            "paused": one.is_paused,
            "last_run": one.last_run_at,
            "next_run": None if one.is_paused else one.next_run_at,
            "last_result": one.last_result,
            "by": one.added_by,
        }
        for one in schedules.list()
    ]
    return Result(pa.Table.from_pylist(rows, schema=_LISTING))


def found(schedules: Schedules, name: str) -> Result:
    """What a schedule has found, the latest decision first.

    Returns:
        item, revision, decision, reason, jobs (list of ids), decided (UTC).

    Raises:
        UsageError: If there is no schedule of this name.
    """
    items = schedules.items(schedules.get(name)).values()
    rows = [
        {
            "item": one.item,
            "revision": one.revision,
            "decision": one.decision,
            "reason": one.reason,
            "jobs": one.job_ids,
            "decided": one.decided_at,
        }
        for one in sorted(items, key=lambda one: (-one.decided_at.timestamp(), one.item))
    ]
    return Result(pa.Table.from_pylist(rows, schema=_FOUND))


_MOMENT = pa.timestamp("s", tz="UTC")
_LISTING = pa.schema(
    [
        ("schedule", pa.string()),
        ("kind", pa.string()),
        ("watches", pa.string()),
        ("when", pa.string()),
        ("paused", pa.bool_()),
        ("last_run", _MOMENT),
        ("next_run", _MOMENT),
        ("last_result", pa.string()),
        ("by", pa.string()),
    ]
)
_FOUND = pa.schema(
    [
        ("item", pa.string()),
        ("revision", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("jobs", pa.list_(pa.int64())),
        ("decided", _MOMENT),
    ]
)


def _named(session: Session, name: str, *, for_update: bool = False) -> Schedule:
    query = select(Schedule).where(Schedule.name == name)
    schedule = session.scalar(query.with_for_update() if for_update else query)
    if schedule is None:
        raise UsageError(f"there is no schedule {name!r}; `heads schedule list` shows all")
    return schedule


def _is_free(now: datetime) -> Any:
    return or_(Schedule.claimed_until.is_(None), Schedule.claimed_until < now)


def _claimed(schedule: Schedule, now: datetime) -> Schedule:
    schedule.claim_token = uuid.uuid4().hex
    schedule.claimed_until = now + CLAIM
    return schedule


def _held(session: Session, schedule: Schedule) -> Schedule:
    row = session.get(Schedule, schedule.id, with_for_update=True)
    if row is None or row.claim_token != schedule.claim_token:
        raise LeaseLost(f"schedule {schedule.name!r} was removed, or given to another scheduler")
    return row
