"""The tables of the job store, on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from catalog.orm import NAMING


class State(StrEnum):
    """What has become of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (State.QUEUED, State.RUNNING)
"""Of a key there is one such job at most."""
IS_ACTIVE = text("state IN ('queued', 'running')")


class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite, which knows no time zones, is given and gives it without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own idiom
        datetime: Moment,
        dict[str, Any]: JSON,
        list[int]: JSON,
        list[str]: JSON,
        str: String,
    }


class Job(Base):
    """One suite to be measured on one model, as it was when it was read.

    All moments are of the store's clock: a server's own, whatever the hosts' clocks say.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index(
            "uq_job_active_key",
            "key",
            unique=True,
            sqlite_where=IS_ACTIVE,
            postgresql_where=IS_ACTIVE,
        ),
        Index("ix_job_state", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    """Equal for requests that are the same job."""
    model: Mapped[str]
    suite: Mapped[str]
    request: Mapped[dict[str, Any]]
    queue: Mapped[str]
    submitted_by: Mapped[str]
    state: Mapped[str]
    """One of `State`."""
    attempt: Mapped[int]
    """How often it was begun, not counting what was given back; 0 before the first time."""
    max_attempts: Mapped[int]
    """How often it is begun at least, before it is given up."""
    begun_at: Mapped[datetime | None]
    """Of the first attempt that counts."""
    not_before: Mapped[datetime | None]
    """Until when a job that was put back rests."""
    cancel_requested: Mapped[bool]
    lease_token: Mapped[str | None]
    """Of the last holder; who cannot show it writes nothing."""
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    """Who holds it, or held it last."""
    host: Mapped[str | None]
    pid: Mapped[int | None]
    device: Mapped[str | None]
    stage: Mapped[str | None]
    """What it is at."""
    stage_started_at: Mapped[datetime | None]
    stage_from: Mapped[int]
    """Steps that were done when the stage was first told of: work that goes on has some."""
    done: Mapped[int]
    """Steps of the stage."""
    total: Mapped[int | None]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    """Since when it waits, or waited last."""
    nudged_at: Mapped[datetime | None]
    """When a message about it was last sent since then."""
    started_at: Mapped[datetime | None]
    """Of the last attempt."""
    finished_at: Mapped[datetime | None]
    error: Mapped[str | None]
    run_ids: Mapped[list[int]]

    @property
    def is_over(self) -> bool:
        return self.state not in ACTIVE

    @property
    def expected_end(self) -> datetime | None:
        """When the stage under way ends if it goes on as it went; None while that is unknown."""
        if self.state != State.RUNNING or self.stage_started_at is None or self.total is None:
            return None
        steps = self.done - self.stage_from
        if steps <= 0 or self.heartbeat_at is None:
            return None
        pace = (self.heartbeat_at - self.stage_started_at) / steps
        return self.heartbeat_at + pace * (self.total - self.done)


class JobEvent(Base):
    """Something that happened to a job."""

    __tablename__ = "job_event"
    __table_args__ = (Index("ix_job_event_job_id", "job_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    at: Mapped[datetime]
    what: Mapped[str]
    detail: Mapped[str | None]


class JobPast(Base):
    """What jobs that were pruned had been through: numbers that Prometheus saw do not fall."""

    __tablename__ = "job_past"

    suite: Mapped[str] = mapped_column(primary_key=True)
    what: Mapped[str] = mapped_column(primary_key=True)
    """An event's name, or `took`."""
    detail: Mapped[str] = mapped_column(primary_key=True)
    """Of failures the kind of error, of `took` a bound in seconds; else empty."""
    number: Mapped[int]
    seconds: Mapped[float]
    """That all of them took; 0 where nobody asks."""


class Worker(Base):
    """A process that takes jobs."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]]
    device: Mapped[str | None]
    memory: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes that a model may take on its device."""
    facts: Mapped[dict[str, Any]]
    """Whatever else it tells of itself."""
    started_at: Mapped[datetime]
    """When the store first heard of it."""
    heartbeat_at: Mapped[datetime]


class Leadership(Base):
    """Which of several processes does what only one may do."""

    __tablename__ = "leadership"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    expires_at: Mapped[datetime]
