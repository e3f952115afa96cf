"""Where a catalog's jobs lie, and how they are reached.

Jobs are small frequent writes, which a DuckDB file would make everybody wait for: they lie in a
SQLite file beside it. On a server they lie in the catalog's database.
"""

import contextlib
import glob
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from catalog.database import Database
from catalog.errors import LockedError, StorageError

_SUFFIX = ".jobs"
_PATIENCE = 30.0
"""Seconds to wait for another process's write, which takes milliseconds."""
_ROOM = 1 << 20
"""Bytes that SQLite may need for its log."""
_OURS = (IntegrityError, ProgrammingError, DataError)
"""What is a mistake in our SQL; everything else a driver says is about the database's health."""


class JobsDatabase:
    """Connections to the job store of one catalog."""

    def __init__(self, database: Database) -> None:
        """Prepare the engine; nothing is opened yet."""
        self.path = _beside(database.path) if database.path else None
        self.name = str(self.path) if self.path else database.name
        self._engine = _sqlite(self.path) if self.path else _server(database)

    @property
    def is_sqlite(self) -> bool:
        return self.path is not None

    @property
    def exists(self) -> bool:
        """Whether there is anything to open; a server is taken to be there."""
        return self.path is None or self.path.exists()

    @contextlib.contextmanager
    def connect(self, *, writable: bool) -> Iterator[Connection]:
        """A connection for one piece of work, within no transaction yet.

        Raises:
            StorageError: If the database is away, goes away meanwhile, or cannot be written.
        """
        with self._connected(self._engine, writable=writable) as connection:
            yield connection

    @contextlib.contextmanager
    def _connected(self, engine: Engine, *, writable: bool) -> Iterator[Connection]:
        try:
            with engine.connect() as connection:
                yield connection.execution_options(begin="IMMEDIATE" if writable else "DEFERRED")
        except DBAPIError as error:
            if isinstance(error, _OURS):
                raise
            reason = str(error.orig).strip().partition("\n")[0]
            if self.path and shutil.disk_usage(self.path.parent).free < _ROOM:
                # SQLite takes a full disk for a broken one.
                reason = f"no space left on its disk: {reason}"
            raise StorageError(
                f"the job store {self.name} cannot be used now ({reason}); where it was being "
                "written, ask again whether it was"
            ) from error

    @contextlib.contextmanager
    def session(self, *, writable: bool) -> Iterator[Session]:
        """One transaction on a connection of its own.

        Raises:
            StorageError: As `connect`.
        """
        with (
            self.connect(writable=writable) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextlib.contextmanager
    def making(self) -> Iterator[Connection]:
        """A connection to change the tables of a SQLite file.

        Where there is none, one is made, which nobody sees before it is whole.

        Raises:
            StorageError: If the file cannot be made or written.
            LockedError: If another process changes its tables, and takes too long.
        """
        assert self.path is not None  # noqa: S101 - narrows the type
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(
                self.path.with_name(f"{self.path.name}.lock"), timeout=_PATIENCE
            ):
                if self.exists:
                    with self._changing(self._engine) as connection:
                        yield connection
                    return
                for left in self.path.parent.glob(f"{glob.escape(new.name)}*"):
                    left.unlink()
                with self._changing(_sqlite(new)) as connection:
                    yield connection
                    connection.rollback()
                    # The log of a file does not come along when it is renamed.
                    connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                new.replace(self.path)
        except filelock.Timeout:
            raise LockedError(
                f"another process has been changing the tables of {self.name} for {_PATIENCE:g} s"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.name} cannot be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StorageError(f"{self.name} cannot be written: {error}") from error

    @contextlib.contextmanager
    def _changing(self, engine: Engine) -> Iterator[Connection]:
        with self._connected(engine, writable=True) as connection:
            # Outside of transactions, and under the lock: SQLite waits for nobody here.
            connection.connection.execute("PRAGMA journal_mode = WAL")
            yield connection


def _beside(catalog: Path) -> Path:
    return catalog.with_name(catalog.name + _SUFFIX)


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"timeout": _PATIENCE},
    )

    @event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, _record: object) -> None:
        # The driver would begin them late, and none at all for changes of tables.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One that reads before it writes must be a writer from the start, or it fails when
        # another was quicker.
        kind = connection.get_execution_options().get("begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {kind}")

    return engine


def _server(database: Database) -> Engine:
    # Nobody is served by a heartbeat that hangs: a cut network shows within half a minute, and a
    # process that was frozen or cut off in the middle of a write lets go of its job's row.
    options = {
        "lock_timeout": "10s",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "10s",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    return database.server_engine(
        options,
        connect_timeout=10,
        tcp_user_timeout=15_000,
        keepalives_idle=5,
        keepalives_interval=5,
        keepalives_count=3,
    )
