"""The catalog's answers, kept until something is written into it."""

import contextlib
import sys
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any, Concatenate, ParamSpec, TypeVar

from cachetools import LRUCache, TTLCache

from catalog import Catalog, Result
from catalog import connect as connect_anew
from catalog.catalog import database_at
from catalog.database import Database

ROOM = 256 << 20
"""Bytes of answers that a server keeps, for all who look at it; those asked for longest ago go."""
_REAPED = 60.0
"""Seconds after which a server looks again for runs whose process was killed."""

P = ParamSpec("P")
T = TypeVar("T")


def size_of(answer: object) -> int:
    """Bytes, of tables exactly; of what is around them as good as nothing."""
    if isinstance(answer, Result):
        return answer.arrow().nbytes + 1_000
    if is_dataclass(answer):
        return sum(size_of(getattr(answer, one.name)) for one in fields(answer))
    return sys.getsizeof(answer)


_answers: LRUCache[Hashable, Any] = LRUCache(ROOM, getsizeof=size_of)
_connected: TTLCache[str, bool] = TTLCache(16, _REAPED)
_lock = Lock()


class Kept(Catalog):
    """A catalog as it was when a page began to be drawn; what it was asked before, it knows.

    Answers are shared between readers: whoever gets one leaves it as it is.
    """

    def __init__(self, database: Database, stamp: str) -> None:
        """Wrap a database that is at a stamp (`Catalog.stamp`)."""
        super().__init__(database)
        self._stamp = stamp

    def sql(self, query: str, /, **parameters: Any) -> Result:
        return self._kept(
            (query, *parameters.items()), lambda: super(Kept, self).sql(query, **parameters)
        )

    def keep(
        self, function: Callable[Concatenate[Catalog, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a function of the catalog returns, which others leave as it is, too."""
        asked = (function, *args, *kwargs.items())
        return self._kept(asked, lambda: function(self, *args, **kwargs))

    def _kept(self, asked: Hashable, ask: Callable[[], T]) -> T:
        key = (self.database.name, self._stamp, asked)
        with _lock:
            if key in _answers:
                known: T = _answers[key]
                return known
        # Outside of the lock: two who ask the same at once both ask, and nobody waits for others.
        answer = ask()
        with _lock, contextlib.suppress(ValueError):  # larger than all the room
            _answers[key] = answer
        return answer


def connect() -> Kept:
    """The catalog that the settings name, as it is now.

    Raises:
        SchemaError: If there is none, or its schema is older or newer than this release's.
    """
    database = database_at()
    with _lock:
        is_known = database.name in _connected
    if not is_known:
        database = connect_anew().database
        with _lock:
            _connected[database.name] = True
    return Kept(database, Catalog(database).stamp())


def forget() -> None:
    """Keep nothing of what was asked so far."""
    with _lock:
        _answers.clear()
        _connected.clear()
