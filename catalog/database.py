"""Engines and connections: one read side, one write side, and the lock between them.

A DuckDB file is open either for writing in one process or for reading in any number, and the
default connection pool would keep it so for the life of the process. Hence no pool, a connection
per piece of work, and a readers-writer lock in a file beside the database that lets processes
wait for each other instead of failing.
"""

import contextlib
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import psutil
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    create_engine,
    func,
    make_url,
    select,
    true,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from catalog.errors import (
    LockedError,
    MissingExtraError,
    SchemaError,
    StorageError,
    UnreachableError,
    UsageError,
)
from catalog.orm import State
from catalog.urls import shown

_READ_ONLY: dict[str, Any] = {
    # A reader of the catalog has no business with other files, and says so to DuckDB once, here.
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "lock_configuration": "true",
}
LOCK_SUFFIX = ".lock"
_LOCKS = Path("/proc/locks")
_ANSWER: dict[str, Any] = {
    # A network that was cut shows within a minute, not after the hours of TCP's own patience.
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 15,
    "keepalives_interval": 15,
    "keepalives_count": 3,
}
_LET_GO = {
    # And so does a worker that lost power, or was frozen, with all other writers behind it.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "15",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "60s",
}
_LONGEST_NAME = 63
"""Bytes; a server cuts off the rest."""
_WRITERS = 0x77726974  # "writ": any number will do, if all writers share it


@dataclass(frozen=True)
class Reader:
    """A role of a PostgreSQL server that reads."""

    role: str
    password: str | None = field(default=None, repr=False)
    """None: what libpq finds by itself, in `~/.pgpass` say."""


class Database:
    """Connections to one catalog database."""

    def __init__(self, url: str, *, lock_timeout: float, reader: Reader | None = None) -> None:
        """Prepare engines; nothing is opened yet.

        Args:
            url: SQLAlchemy URL, `duckdb:///FILE` or `postgresql+psycopg://...`.
            lock_timeout: Seconds to wait for a DuckDB file in use elsewhere.
            reader: Who reads on a server, if not the URL's own role.

        Raises:
            UsageError: If the URL is malformed or of another database.
        """
        self.url = _parse(url)
        self.lock_timeout = lock_timeout
        self._reader = reader

    @property
    def is_duckdb(self) -> bool:
        return self.url.get_backend_name() == "duckdb"

    @property
    def path(self) -> Path | None:
        """The DuckDB file; None on a server."""
        return Path(self.url.database or "") if self.is_duckdb else None

    @property
    def name(self) -> str:
        """What messages call this database: never with its password."""
        return (
            str(self.path) if self.path else shown(self.url.render_as_string(hide_password=False))
        )

    @property
    def exists(self) -> bool:
        """Whether there is anything to open; a server is taken to be there."""
        return self.path is None or self.path.exists()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that cannot write.

        Raises:
            SchemaError: If there is no such DuckDB file.
            LockedError: If another process kept the file for longer than `lock_timeout`.
        """
        self._require_existence()
        with self._connect(writable=False) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, patience: float | None = None) -> Iterator[Connection]:
        """A connection that may write, within no transaction yet.

        Args:
            patience: Seconds to wait for the file, in place of `lock_timeout`.

        Raises:
            LockedError: If other processes kept the file for longer.
        """
        with self._connect(writable=True, patience=patience) as connection:
            yield connection

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keep writers out of a DuckDB file, without opening it.

        Raises:
            SchemaError: If there is no such file.
            LockedError: If another process kept the file for longer than `lock_timeout`.
        """
        self._require_existence()
        with self._file_lock(self.lock_timeout, writable=False):
            yield

    @contextlib.contextmanager
    def read_session(self) -> Iterator[Session]:
        with self.reading() as connection, Session(connection) as session:
            yield session

    @contextlib.contextmanager
    def transaction(self, patience: float | None = None) -> Iterator[Session]:
        """A session whose work becomes visible as a whole at the end, or not at all.

        Writers take turns, on a server as in a file, so that none meets a half-made row of
        another.

        Args:
            patience: Seconds to wait for the file, in place of `lock_timeout`, or for each lock
                on a server; unless told, one waits there for as long as others write.

        Raises:
            LockedError: If other processes kept the file for longer.
            StorageError: If a lock on a server was not had in time, or the server goes away.
        """
        try:
            with (
                self.writing(patience) as connection,
                Session(connection) as session,
                session.begin(),
            ):
                if not self.is_duckdb:
                    if patience is not None:
                        # To the server, 0 is no limit.
                        limit = f"{max(1, round(1000 * patience))}ms"
                        session.execute(select(func.set_config("lock_timeout", limit, true())))
                    session.execute(select(func.pg_advisory_xact_lock(_WRITERS)))
                yield session
                # What anybody has kept of the catalog's answers is now of another state.
                session.execute(update(State).values(stamp=secrets.token_hex(8)))
        except OperationalError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise StorageError(
                f"{self.name} could not be written, and is as it was before: {reason}"
            ) from error

    def _require_existence(self) -> None:
        if not self.exists:
            raise SchemaError(
                f"there is no catalog at {self.name}; "
                "make one with `heads db upgrade` or fill one with `heads ingest MODEL`"
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator["Database"]:
        """This database, its DuckDB file kept from all others until the block ends.

        Raises:
            LockedError: If other processes kept the file for longer than `lock_timeout`.
        """
        with self._file_lock(self.lock_timeout, writable=True):
            yield _Held(self.url.render_as_string(), lock_timeout=self.lock_timeout)

    @contextlib.contextmanager
    def _connect(self, *, writable: bool, patience: float | None = None) -> Iterator[Connection]:
        patience = self.lock_timeout if patience is None else patience
        engine = self._engine(writable=writable)
        try:
            if not self.is_duckdb:
                with _server_connection(engine, self.name) as connection:
                    yield connection
                return
            started = time.monotonic()
            with self._file_lock(patience, writable=writable):
                left = patience - (time.monotonic() - started)
                with self._open_file(engine, left, patience) as connection:
                    yield connection
        finally:
            engine.dispose()

    def _engine(self, *, writable: bool) -> Engine:
        if self.is_duckdb:
            arguments = {} if writable else {"read_only": True, "config": _READ_ONLY}
            return create_engine(self.url, poolclass=NullPool, connect_args=arguments)
        options = _LET_GO if writable else {"default_transaction_read_only": "on"}
        who = (
            {"application_name": writer_name(platform.node(), os.getpid())}
            if writable
            else self._as_reader()
        )
        # Prepared from the first time on: PostgreSQL prepares single statements only.
        return self.server_engine(options, prepare_threshold=0, **_ANSWER, **who)

    def reading_keywords(self) -> dict[str, Any]:
        """What libpq needs to know to connect to the server as who reads; has the password."""
        parts = self.url.translate_connect_args(username="user", database="dbname")
        return parts | dict(self.url.query) | _ANSWER | self._as_reader()

    def _as_reader(self) -> dict[str, Any]:
        if self._reader is None:
            return {}
        return {"user": self._reader.role, "password": self._reader.password}

    def server_engine(self, options: Mapping[str, str], **arguments: Any) -> Engine:
        """An engine for the server, with a connection per piece of work.

        Args:
            options: PostgreSQL's own settings of the session, such as `statement_timeout`.
            arguments: The driver's.

        Raises:
            MissingExtraError: If the driver is not installed.
        """
        settings = {"timezone": "UTC", **options}
        arguments["options"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
        try:
            return create_engine(self.url, poolclass=NullPool, connect_args=arguments)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{self.name} needs the package {error.name}; "
                "install it with `pip install 'head-catalog[postgresql]'`"
            ) from error

    @contextlib.contextmanager
    def _file_lock(self, patience: float, *, writable: bool) -> Iterator[None]:
        assert self.path is not None  # noqa: S101 - narrows the type
        beside = self.path.with_name(self.path.name + LOCK_SUFFIX)
        if not writable and not os.access(beside.parent, os.W_OK):
            yield  # nobody writes in a folder that is read-only
            return
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            # An object each time: threads of one process wait for each other like processes do.
            lock = filelock.ReadWriteLock(beside, is_singleton=False)
            acquire = lock.acquire_write if writable else lock.acquire_read
            acquire(timeout=patience)
        except filelock.Timeout:
            raise self._locked(patience) from None
        except OSError as error:
            raise StorageError(
                f"{self.name} cannot be used: {beside.name} beside it cannot be written "
                f"({error.strerror})"
            ) from error
        try:
            yield
        finally:
            lock.release()
            lock.close()

    def _open_file(self, engine: Engine, left: float, patience: float) -> Connection:
        """Open the file; wait also for programs that know nothing of our lock."""
        deadline = time.monotonic() + left
        while True:
            try:
                return engine.connect()
            except DBAPIError as error:
                text = str(error.orig)
                if "Could not set lock" not in text and "different configuration" not in text:
                    raise SchemaError(
                        f"{self.name} cannot be opened as a DuckDB file: {text.splitlines()[0]}"
                    ) from error
                if time.monotonic() > deadline:
                    raise self._locked(patience) from None
                time.sleep(0.05)

    def _locked(self, patience: float) -> LockedError:
        assert self.path is not None  # noqa: S101 - narrows the type
        holders = _holders(self.path, self.path.with_name(self.path.name + LOCK_SUFFIX))
        return LockedError(
            f"{self.name} was in use by {holders} for all of {patience:g} s; "
            "end that program or wait for it, or raise HEADS_LOCK_TIMEOUT"
        )


def writer_name(host: str, pid: int) -> str:
    """What a server knows a process by that writes."""
    return f"heads {pid}@{host}"[:_LONGEST_NAME]


class _Held(Database):
    """A DuckDB file that is locked already."""

    @contextlib.contextmanager
    def _file_lock(self, patience: float, *, writable: bool) -> Iterator[None]:  # noqa: ARG002
        yield


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(
            f"{shown(url)!r} is no database URL; expected duckdb:///FILE or "
            "postgresql+psycopg://..."
        ) from None
    if parsed.host and "@" in parsed.host:
        raise UsageError(f"{shown(url)!r} has more than one @; in a password, write %40 for each")
    if parsed.get_backend_name() == "duckdb":
        if not parsed.database or parsed.database == ":memory:":
            raise UsageError(
                f"{url!r} names no file; a catalog in memory would be gone when the command ends, "
                "so give duckdb:///FILE"
            )
        return parsed
    if parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    raise UsageError(
        f"{parsed.drivername!r} is not supported; "
        "use duckdb:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    )


def _server_connection(engine: Engine, name: str) -> Connection:
    try:
        return engine.connect()
    except NoSuchModuleError as error:
        raise UsageError(str(error)) from error
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise UnreachableError(f"{name} cannot be reached: {reason}") from error


def _holders(*paths: Path) -> str:
    """Which programs hold locks on these files; Linux tells."""
    files = {str(path.stat().st_ino) for path in paths if path.exists()}
    # A line: number, POSIX, ADVISORY, READ or WRITE, pid, major:minor:inode, start, end
    lines = _LOCKS.read_text().splitlines() if _LOCKS.exists() else []
    fields = [line.replace("-> ", "").split() for line in lines]
    pids = {int(one[4]) for one in fields if one[5].rpartition(":")[2] in files}
    named = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.Error):
            named.append(f"{psutil.Process(pid).name()} (process {pid})")
    return " and ".join(named) or "another program"
