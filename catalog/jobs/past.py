"""What jobs have been through: counted for ever, kept one by one until somebody prunes them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from catalog.jobs.orm import ACTIVE, Job, JobEvent, JobPast, State
from catalog.jobs.store import JobStore

BOUNDS = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 12 * 3_600, 86_400)
"""Seconds; from a tiny model to one of 70 billion parameters."""
_TOOK = "took"
_KIND = re.compile(r"(?:\w+\.)*(\w+): ", re.ASCII)
"""Of errors as tracebacks end with them."""
_LOST = re.compile(r"was last heard of|^its process \(|^the worker's process \(")


@dataclass(frozen=True)
class Took:
    """How long the last attempts of jobs that succeeded took."""

    within: Sequence[int]
    """How many took at most as long as each of `BOUNDS`."""
    number: int
    seconds: float
    """Of all together."""


class Past:
    """What has happened to all jobs of a store, those that were pruned included."""

    def __init__(self, store: JobStore) -> None:
        """Wrap an open job store."""
        self._store = store

    def happened(self) -> dict[tuple[str, str], int]:
        """How often what has happened to jobs ever, by suite and event; no number ever falls."""
        found: Counter[tuple[str, str]] = Counter()
        with self._store.database.session(writable=False) as session:
            for (suite, what, _), (number, _) in _sum(_events(session), _pruned(session)).items():
                if what != _TOOK:
                    found[suite, what] += number
        return dict(found)

    def failures(self) -> dict[tuple[str, str], int]:
        """How often jobs have failed ever, by suite and the kind of error.

        The kind is the exception's name as tracebacks have it; `lost` where the worker was gone,
        `other` where there was none.
        """
        with self._store.database.session(writable=False) as session:
            found = _sum(_events(session), _pruned(session))
        return {
            (suite, kind): number
            for (suite, what, kind), (number, _) in found.items()
            if what == State.FAILED
        }

    def durations(self) -> dict[str, Took]:
        """How long jobs that succeeded took, by suite."""
        with self._store.database.session(writable=False) as session:
            found = _sum(self._took(session), _pruned(session))
        whole = {suite: took for (suite, what, of), took in found.items() if (what, of) == _ALL}
        return {
            suite: Took([found[suite, _TOOK, str(one)][0] for one in BOUNDS], number, seconds)
            for suite, (number, seconds) in whole.items()
        }

    def old(self, older_than: timedelta) -> int:
        """How many jobs have been over for longer than that."""
        with self._store.database.session(writable=False) as session:
            query = select(func.count()).select_from(Job).where(*_over(self._since(older_than)))
            return session.scalars(query).one()

    def prune(self, older_than: timedelta) -> int:
        """Forget the jobs that have been over for longer than that, and all they went through.

        What they published stays, and so do the numbers that are counted.

        Returns:
            How many there were.
        """
        since = self._since(older_than)
        with self._store.database.session(writable=True) as session:
            # What is retried meanwhile is over no more, and stays.
            locked = select(Job.id).where(*_over(since)).with_for_update(skip_locked=True)
            ids = session.scalars(locked).all()
            for start in range(0, len(ids), _AT_ONCE):
                these = ids[start : start + _AT_ONCE]
                gone = _sum(
                    _events(session, Job.id.in_(these)), self._took(session, Job.id.in_(these))
                )
                for key, (number, seconds) in gone.items():
                    past = session.get(JobPast, key) or JobPast(
                        **dict(zip(("suite", "what", "detail"), key, strict=True)),
                        number=0,
                        seconds=0.0,
                    )
                    past.number += number
                    past.seconds += seconds
                    session.add(past)
                session.execute(delete(JobEvent).where(JobEvent.job_id.in_(these)))
                session.execute(delete(Job).where(Job.id.in_(these)))
        return len(ids)

    def _since(self, older_than: timedelta) -> datetime:
        return self._store.now() - older_than

    def _took(self, session: Session, *which: ColumnElement[bool]) -> Iterator["_Row"]:
        took = self._seconds(Job.finished_at) - self._seconds(Job.started_at)
        within = [func.count(case((took <= bound, 1))) for bound in BOUNDS]
        query = (
            select(Job.suite, func.count(), func.sum(took), *within)
            .where(Job.state == State.SUCCEEDED, *which)
            .group_by(Job.suite)
        )
        for suite, number, seconds, *counts in session.execute(query):
            yield (suite, *_ALL), (number, float(seconds))
            for bound, count in zip(BOUNDS, counts, strict=True):
                yield (suite, _TOOK, str(bound)), (count, 0.0)

    def _seconds(self, moment: InstrumentedAttribute[datetime | None]) -> ColumnElement[Any]:
        if self._store.database.is_sqlite:
            return func.julianday(moment) * 86_400
        return func.extract("epoch", moment)


_AT_ONCE = 500
_ALL = (_TOOK, "")
_Key = tuple[str, str, str]
"""Suite, event, detail, as in `JobPast`."""
_Row = tuple[_Key, tuple[int, float]]
"""How many there are, and the seconds that they took."""


def _over(since: datetime) -> tuple[ColumnElement[bool], ...]:
    return Job.state.not_in(ACTIVE), Job.finished_at < since


def _events(session: Session, *which: ColumnElement[bool]) -> Iterator[_Row]:
    """What has happened to jobs that are still there; of failures by kind."""
    detail = case((JobEvent.what == State.FAILED, JobEvent.detail))
    query = (
        select(Job.suite, JobEvent.what, detail, func.count())
        .join(Job, Job.id == JobEvent.job_id)
        .where(*which)
        .group_by(Job.suite, JobEvent.what, detail)
    )
    for suite, what, error, number in session.execute(query):
        yield (suite, what, _kind(error or "") if what == State.FAILED else ""), (number, 0.0)


def _pruned(session: Session) -> Iterator[_Row]:
    for past in session.scalars(select(JobPast)):
        yield (past.suite, past.what, past.detail), (past.number, past.seconds)


def _sum(*rows: Iterator[_Row]) -> Mapping[_Key, tuple[int, float]]:
    numbers: Counter[_Key] = Counter()
    seconds: dict[_Key, float] = {}
    for some in rows:
        for key, (number, took) in some:
            numbers[key] += number
            seconds[key] = seconds.get(key, 0.0) + took
    return {key: (number, seconds[key]) for key, number in numbers.items()}


def _kind(error: str) -> str:
    if _LOST.search(error):
        return "lost"
    found = _KIND.match(error)
    return found[1] if found else "other"
