"""SQL from strangers: each query in a process of its own, which is killed when it takes too much.

Of DuckDB the process reads a copy of the file, made once per change of the file: a query that runs
for seconds would keep writers waiting for as long, and many of them for ever. On PostgreSQL it has
a read-only transaction of its own. What it may do at all is said in `catalog.cage`.
"""

import contextlib
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.cage.limits import Cut, Failure, Limits, Request
from catalog.database import Database
from catalog.errors import HeadsError, MissingExtraError, QueryError, StorageError, UnreachableError
from catalog.settings import Settings, load_settings
from catalog.sql import Result
from catalog.views import VIEWS

__all__ = ["Answer", "Limits", "Result", "ask", "limits_of"]

MAX_QUERY = 100_000
"""Characters."""

_GRACE = 1.0
"""Seconds that the process has beyond its limit to say so itself."""

_STARTING = 30.0
"""Seconds."""

_FORMER_KEPT = 30.0
"""Seconds."""

_PACKAGE = Path(__file__).parent
_START = (
    # The package without its `__init__`, which brings SQLAlchemy: 0.3 s in place of 1.4.
    "import runpy, sys, types; package = types.ModuleType('catalog'); "
    f"package.__path__ = [{str(_PACKAGE)!r}]; sys.modules['catalog'] = package; "
    "runpy.run_module('catalog.cage', run_name='__main__', alter_sys=True)"
)
_OF_LIBPQ = ("PG", "HOME")


@dataclass(frozen=True)
class Answer:
    """Rows, and where they end before the query's last one."""

    result: Result
    limits: Limits
    seconds: float
    """As it took here, the start of the process included."""
    cut: Cut | None = None

    @property
    def notice(self) -> str | None:
        """What to tell a reader of an answer that is not all; None of one that is."""
        if self.cut is None:
            return None
        reason = {
            "rows": f"an answer has at most {self.limits.rows:,} rows",
            "bytes": f"an answer has at most {_megabytes(self.limits.bytes)}",
            "time": f"a query may take {self.limits.seconds:g} s",
        }[self.cut]
        return f"These are the first {len(self.result):,} rows: {reason}."


def limits_of(settings: Settings) -> Limits:
    """What the operator allows a query."""
    return Limits(
        seconds=settings.sql_seconds, rows=settings.sql_rows, memory=settings.sql_memory * 2**20
    )


def ask(database: Database, query: str, limits: Limits | None = None) -> Answer:
    """Answer a query that nobody vouches for.

    Args:
        database: Its file is copied to `HEADS_WORK_DIR`, unless that has been done since the
            file's last change.
        query: One SELECT or EXPLAIN over the views.
        limits: By default the settings'.

    Returns:
        All rows, or the first ones where a limit is met.

    Raises:
        QueryError: If the query is not allowed, fails, or meets a limit before its first row;
            or if as many queries as may are running.
        LockedError: If another process kept a DuckDB file for too long.
        StorageError: If the file cannot be copied.
    """
    settings = load_settings()
    limits = limits or limits_of(settings)
    _require_sane(query)
    started = time.monotonic()
    with _turns.take(settings.sql_at_once, patience=limits.seconds):
        if database.is_duckdb:
            kind = "duck"
            place: dict[str, Any] = {"file": str(_snapshot(database, settings.work_dir))}
        else:
            kind = "postgresql"
            place = {"server": database.reading_keywords()}
        request = Request(query=query, limits=limits, views=list(VIEWS), **place)
        process = _ready.take(kind)
        try:
            reply = _run(process, request)
        finally:
            _ready.prepare(kind)
    return _answer(reply, limits, time.monotonic() - started)


def _require_sane(query: str) -> None:
    if len(query) > MAX_QUERY:
        raise QueryError(
            f"the query has {len(query):,} characters; at most {MAX_QUERY:,} are allowed here"
        )
    if "\0" in query:
        raise QueryError("the query has a NUL character, which no SQL has")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise QueryError("the query is not UTF-8 text; give it as such") from None


def _run(process: subprocess.Popen[bytes], request: Request) -> bytes | None:
    """What the process replies; None where it had to be killed, b"" where it died."""
    try:
        reply, _ = process.communicate(
            json.dumps(asdict(request)).encode(), timeout=request.limits.seconds + _GRACE
        )
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.communicate()
    return reply


def _answer(reply: bytes | None, limits: Limits, seconds: float) -> Answer:
    if reply is None:
        raise _failure("time", "", limits)
    head, _, table = reply.partition(b"\n")
    if not head:
        # Ended by the system: what it allocates beyond its limit kills it at the latest.
        raise _failure("memory", "", limits)
    header = json.loads(head)
    if "failure" in header:
        raise _failure(header["failure"], header["message"], limits)
    result = Result(pa.ipc.open_stream(table).read_all())
    return Answer(result, limits, seconds, header["cut"])


def _failure(failure: Failure, message: str, limits: Limits) -> HeadsError:
    match failure:
        case "time":
            return QueryError(
                f"the query took longer than {limits.seconds:g} s, which is the limit here; "
                "ask for fewer rows or models"
            )
        case "memory":
            return QueryError(
                f"the query needed more than {_megabytes(limits.memory)} of memory, which is the "
                "limit here; ask for fewer rows or models"
            )
        case "unreachable":
            return UnreachableError(f"the catalog cannot be reached: {message.splitlines()[0]}")
        case "missing":
            return MissingExtraError(
                f"this needs the package {message}; "
                "install it with `pip install 'head-catalog[postgresql]'`"
            )
        case "refused":
            return QueryError(message)
        case "failed":
            return QueryError(f"the database refused the query: {message}")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


class _Turns:
    """So many queries at once, in all threads of this process."""

    def __init__(self) -> None:
        self._running = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, at_once: int, *, patience: float) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._running < at_once, patience):
                raise QueryError(
                    f"{at_once} other queries have been running for {patience:g} s, and no more "
                    "may at once; ask again in a moment"
                )
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()


class _Ready:
    """One started process of each kind that waits for its query, since starting takes 0.3 s.

    It ends by itself when this process does: its standard input ends.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def take(self, kind: str) -> subprocess.Popen[bytes]:
        with self._lock:
            process = self._waiting.pop(kind, None)
        if process is None or process.poll() is not None:
            process = _start(kind)
        _await(process)
        return process

    def prepare(self, kind: str) -> None:
        with self._lock:
            if kind not in self._waiting:
                self._waiting[kind] = _start(kind)


_turns = _Turns()
_ready = _Ready()


def _start(kind: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-I", "-c", _START, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(kind, os.environ),
    )


def _await(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process says that it is loaded: the query's time begins then."""
    assert process.stdout is not None  # noqa: S101 - narrows the type
    is_heard = select.select([process.stdout], [], [], _STARTING)[0]
    if not is_heard or not process.stdout.read(1):
        process.kill()
        process.communicate()
        raise StorageError(
            f"a process for queries did not start within {_STARTING:g} s; "
            "the machine may have no memory left"
        )


def _environment(kind: str, whole: Mapping[str, str]) -> dict[str, str]:
    """Nothing that SQL could tell; libpq needs to know where its passwords are."""
    if kind == "duck":
        return {}
    return {name: value for name, value in whole.items() if name.startswith(_OF_LIBPQ)}


def _snapshot(database: Database, work_dir: Path) -> Path:
    """A copy of the file as it is now; writers wait while it is made, and not afterwards."""
    assert database.path is not None  # noqa: S101 - narrows the type
    folder = work_dir / "snapshots"
    name = hashlib.sha256(str(database.path.resolve()).encode()).hexdigest()[:16]
    current = folder / f"{name}-{_state(database.path)}.duckdb"
    if current.exists():
        return current
    with _copying, database.holding():
        current = folder / f"{name}-{_state(database.path)}.duckdb"
        if current.exists():
            return current
        part = folder / f"{uuid.uuid4().hex}.part"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for suffix in (".wal", ""):  # whoever sees the file sees its log
                source = database.path.with_name(database.path.name + suffix)
                if source.exists():
                    _copy(source, part)
                    part.replace(f"{current}{suffix}")
        except OSError as error:
            raise StorageError(
                f"{database.name} cannot be copied to {folder} for queries ({error.strerror}); "
                "HEADS_WORK_DIR says where to"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        _forget(folder, name, current)
    return current


_copying = threading.Lock()


def _state(path: Path) -> str:
    """What differs whenever the file or its log differs."""
    facts = []
    for one in (path, path.with_name(path.name + ".wal")):
        with contextlib.suppress(FileNotFoundError):
            found = one.stat()
            facts.append(f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}")
    return "-".join(facts)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        target.chmod(0o600)
        if hasattr(os, "copy_file_range"):
            # File systems that can (XFS, btrfs) share the blocks.
            with contextlib.suppress(OSError):
                while os.copy_file_range(read.fileno(), written.fileno(), 2**30):
                    pass
                return
        read.seek(0)
        written.seek(0)
        shutil.copyfileobj(read, written, 2**20)


def _forget(folder: Path, name: str, current: Path) -> None:
    """Remove former copies, but not one that a process may be about to open."""
    for old in folder.glob(f"{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            is_former = not old.name.startswith(current.name)
            if is_former and time.time() - old.stat().st_mtime > _FORMER_KEPT:
                old.unlink()
