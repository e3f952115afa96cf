"""What a stranger's query may take, and what its answer says of it."""

from dataclasses import dataclass
from typing import Any, Literal

Cut = Literal["rows", "bytes", "time"]
"""The limit at which an answer ends before the query's last row."""

Failure = Literal["refused", "failed", "time", "memory", "unreachable", "missing"]
"""Not allowed; what the database does not answer; beyond a limit before the first row; no server;
no driver."""


@dataclass(frozen=True)
class Limits:
    """What one query may take."""

    seconds: float = 10.0
    rows: int = 10_000
    bytes: int = 16 * 2**20
    """Of the answer, as Arrow holds it."""
    memory: int = 512 * 2**20
    """Bytes for the query itself; a PostgreSQL server has memory of its own."""


class RefusedError(Exception):
    """A query that a stranger may not run; one sentence."""


class UnreachableError(Exception):
    """A server that does not answer."""


class BeyondLimitError(Exception):
    """A query that met a limit before its first row."""

    def __init__(self, which: Literal["time", "memory"]) -> None:
        """Name the limit."""
        super().__init__(which)
        self.which: Literal["time", "memory"] = which


@dataclass(frozen=True)
class Request:
    """What the process is asked, as JSON on its standard input."""

    query: str
    limits: Limits
    views: list[str]
    """What may be read."""
    file: str | None = None
    """Of DuckDB, which no process writes."""
    server: dict[str, Any] | None = None
    """Keywords of libpq."""
