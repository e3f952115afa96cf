"""What the job store is told, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catalog.jobs.orm import Job


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What shall be measured."""

    model: str
    suite: str
    request: dict[str, Any]
    """JSON; all that the worker is told."""
    queue: str
    key: str
    """Equal for requests that are the same job."""
    submitted_by: str = "user"
    max_attempts: int = 3
    """How many workers may die of it, if the time is up as well: most die of something else."""


@dataclass(frozen=True)
class Submitted:
    """The job that now stands for a request."""

    job: Job
    is_new: bool
    """Not if the same was queued or running already."""


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """What a job is at."""

    stage: str
    done: int = 0
    total: int | None = None
    """Steps of the stage; None where nobody knows."""


@dataclass(frozen=True)
class Beat:
    """What a worker is told when it shows that it lives."""

    cancel_requested: bool


@dataclass(frozen=True)
class Reaped:
    """What became of the jobs of dead workers; some of the queued ones rest first."""

    requeued: Sequence[Job]
    failed: Sequence[Job]
    cancelled: Sequence[Job]
