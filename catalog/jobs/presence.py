"""Who is there: workers that show that they live, and the one of several processes that leads."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from catalog.jobs.connections import JobsDatabase
from catalog.jobs.orm import Leadership, Worker

ALIVE = 60.0
"""Seconds since its last beat in which a worker counts as there: it beats several times in them."""


class Presence:
    """What of a job store is about processes, and no jobs."""

    def __init__(self, database: JobsDatabase) -> None:
        """Wrap a database at this release's schema."""
        self._database = database

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._database.name}>"

    @property
    def name(self) -> str:
        """What messages call it: never with a password."""
        return self._database.name

    @property
    def database(self) -> JobsDatabase:
        """Where the store lies, for what else is kept there (`catalog.jobs.schedules`)."""
        return self._database

    def now(self) -> datetime:
        """The store's clock, which all its moments are of."""
        with self._reading() as session:
            return self._clock(session)

    def worker_beat(self, worker: Worker) -> None:
        """A worker shows that it lives; its moments are the store's to say."""
        with self._writing() as session:
            now = self._clock(session)
            told = {
                "host": worker.host,
                "pid": worker.pid,
                "queues": worker.queues,
                "device": worker.device,
                "memory": worker.memory,
                "facts": worker.facts or {},
                "heartbeat_at": now,
            }
            row = self._insert(Worker).values(name=worker.name, started_at=now, **told)
            is_same = Worker.pid == row.excluded.pid
            since = case((is_same, Worker.started_at), else_=row.excluded.started_at)
            session.execute(
                row.on_conflict_do_update(
                    index_elements=["name"], set_={**told, "started_at": since}
                )
            )

    def worker_gone(self, name: str) -> None:
        """A worker has ended as it should."""
        with self._writing() as session:
            session.execute(delete(Worker).where(Worker.name == name))

    def forget_workers(self, silent_for: float) -> Sequence[str]:
        """Forget workers that died, and have not been heard of for `silent_for` seconds.

        Returns:
            Their names.
        """
        with self._writing() as session:
            since = self._clock(session) - timedelta(seconds=silent_for)
            gone = delete(Worker).where(Worker.heartbeat_at < since).returning(Worker.name)
            return session.scalars(gone).all()

    def workers(self, *, alive_within: float | None = None) -> Sequence[Worker]:
        """Workers by name; `alive_within` seconds, if given: only those heard of since."""
        query = select(Worker).order_by(Worker.name)
        with self._reading() as session:
            if alive_within is not None:
                since = self._clock(session) - timedelta(seconds=alive_within)
                query = query.where(Worker.heartbeat_at >= since)
            return session.scalars(query).all()

    def lead(self, name: str, holder: str, seconds: float) -> bool:
        """Whether the holder leads for the next seconds; it does until it stops asking."""
        with self._writing() as session:
            now = self._clock(session)
            row = self._insert(Leadership).values(
                name=name, holder=holder, expires_at=now + timedelta(seconds=seconds)
            )
            is_free = or_(Leadership.holder == holder, Leadership.expires_at < now)
            won = session.scalar(
                row.on_conflict_do_update(
                    index_elements=["name"],
                    set_={"holder": row.excluded.holder, "expires_at": row.excluded.expires_at},
                    where=is_free,
                ).returning(Leadership.holder)
            )
            return won is not None

    def leader(self, name: str) -> str | None:
        """Who leads now, if anybody does."""
        with self._reading() as session:
            query = select(Leadership.holder).where(
                Leadership.name == name, Leadership.expires_at >= self._clock(session)
            )
            return session.scalar(query)

    def resign(self, name: str, holder: str) -> None:
        """Let another lead at once, if the holder does."""
        with self._writing() as session:
            session.execute(
                delete(Leadership).where(Leadership.name == name, Leadership.holder == holder)
            )

    # How

    def _reading(self) -> AbstractContextManager[Session]:
        return self._database.session(writable=False)

    def _writing(self) -> AbstractContextManager[Session]:
        return self._database.session(writable=True)

    def _clock(self, session: Session) -> datetime:
        """A server's own clock: those of several hosts need not agree."""
        if self._database.is_sqlite:
            return datetime.now(UTC)
        return session.scalars(select(func.clock_timestamp())).one()

    @property
    def _insert(self) -> Callable[[type[Any]], Any]:
        # The same methods on two classes without a common one.
        return sqlite.insert if self._database.is_sqlite else postgresql.insert
