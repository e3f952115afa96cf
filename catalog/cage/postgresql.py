"""A stranger's query on a PostgreSQL server, in a read-only transaction of its own."""

import contextlib
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import psycopg
import pyarrow as pa

from catalog.cage.answer import Rows
from catalog.cage.grammar import AMPLIFYING_FUNCTIONS, STABLE_FUNCTIONS, check
from catalog.cage.limits import BeyondLimitError, Cut, RefusedError, Request, UnreachableError
from catalog.tables import from_postgresql, tidy

_ROWS_AT_ONCE = 256
_LATE = 0.5
"""Seconds after which the query is cancelled from here where the server did not end it."""

_FUNCTIONS = """
    SELECT proname FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(%s)
    GROUP BY proname
    HAVING bool_and(provolatile = 'i')
"""
_RELATIONS = (
    "SELECT name FROM unnest(%s::text[]) name WHERE to_regclass(quote_ident(name)) IS NOT NULL"
)


def ask(request: Request) -> tuple[pa.Table, Cut | None]:
    """Rows up to the limits.

    Raises:
        RefusedError: If it is more than one reading statement over the views.
        BeyondLimitError: If a limit was met before the first row.
        UnreachableError: If there is no connection to the server.
        psycopg.Error: If the query fails.
    """
    try:
        connection = psycopg.connect(
            **(request.server or {}) | {"options": _options(request)}, prepare_threshold=0
        )
    except psycopg.OperationalError as error:
        raise UnreachableError(str(error).strip()) from error
    connection.read_only = True
    _check(connection, request)
    _limit_files(connection, request)
    watch = threading.Timer(request.limits.seconds + _LATE, connection.cancel_safe)
    watch.daemon = True
    watch.start()
    return _read(connection, request)


def _options(request: Request) -> str:
    milliseconds = round(request.limits.seconds * 1000)
    settings = {
        "timezone": "UTC",
        "default_transaction_read_only": "on",
        "statement_timeout": milliseconds,
        "lock_timeout": min(milliseconds, 1000),
        "idle_in_transaction_session_timeout": milliseconds + 2000,
        "work_mem": "16MB",
        "hash_mem_multiplier": 1,
        "max_parallel_workers_per_gather": 0,
        "jit": "off",
        # The server looks whether this process is still there, which may be killed.
        "client_connection_check_interval": 500,
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _check(connection: psycopg.Connection[Any], request: Request) -> None:
    with connection.transaction():
        [schema] = connection.execute("SELECT current_schema()").fetchone() or [""]
        views = set(request.views)
        named = check(request.query, views, schema)
        known = {name for (name,) in connection.execute(_FUNCTIONS, [list(named.functions)])}
        for name in sorted(named.functions):
            if name in AMPLIFYING_FUNCTIONS or name not in known | STABLE_FUNCTIONS:
                raise RefusedError(f"the function {name!r} is not allowed here")
        # A name that hides a table here might not hide it there.
        for (name,) in connection.execute(_RELATIONS, [list(named.common_tables - views)]):
            raise RefusedError(f"{name!r} is a table's name; call what is after WITH otherwise")


def _limit_files(connection: psycopg.Connection[Any], request: Request) -> None:
    """What a sort may write; only who is allowed to may set it (GRANT SET ON PARAMETER)."""
    kilobytes = request.limits.memory // 1024
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute(f"SET SESSION temp_file_limit = {kilobytes}")


def _read(connection: psycopg.Connection[Any], request: Request) -> tuple[pa.Table, Cut | None]:
    columns = _describe(connection, request.query)
    rows = Rows(from_postgresql(columns, []).schema, request.limits)
    # One row after the other as the server makes them, and prepared: it takes one statement.
    stream = connection.cursor().stream(request.query)
    try:
        rows.take(_batches(columns, stream))
    except psycopg.errors.QueryCanceled as error:
        if not rows.any:
            raise BeyondLimitError("time") from error
        rows.cut = "time"
    except (psycopg.errors.OutOfMemory, psycopg.errors.ConfigurationLimitExceeded) as error:
        raise BeyondLimitError("memory") from error
    except psycopg.OperationalError as error:
        if "out of memory" not in str(error):
            raise
        raise BeyondLimitError("memory") from error
    if rows.cut:
        connection.cancel_safe()
    return tidy(rows.table()), rows.cut


def _describe(connection: psycopg.Connection[Any], query: str) -> list[tuple[str, int]]:
    """Names and type numbers of the columns, which no row needs to tell."""
    driver = connection.pgconn
    driver.exec_(b"BEGIN READ ONLY")
    for described in (driver.prepare(b"", query.encode()), driver.describe_prepared(b"")):
        if described.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(described)
    names = [described.fname(at) or b"" for at in range(described.nfields)]
    return [(name.decode(), described.ftype(at)) for at, name in enumerate(names)]


def _batches(
    columns: list[tuple[str, int]], stream: Iterator[tuple[Any, ...]]
) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(stream, _ROWS_AT_ONCE)):
        yield from from_postgresql(columns, rows).to_batches()
