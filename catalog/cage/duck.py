"""A stranger's query on a DuckDB file that nobody writes."""

import json
import re
import resource
import threading
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from catalog.cage.answer import Rows
from catalog.cage.limits import BeyondLimitError, Cut, RefusedError, Request
from catalog.statements import NotReadingError, require_reading
from catalog.tables import tidy

_SETTINGS = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "threads": "1",
}
_ROWS_AT_ONCE = 2048

TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "unnest"}
"""Those that read nothing but their arguments."""

REFUSED_FUNCTIONS = {
    "current_connection_id",
    "current_query",
    "current_query_id",
    "current_setting",
    "current_transaction_id",
    "currval",
    "getenv",
    "getvariable",
    "json_serialize_plan",
    "nextval",
    "pg_sleep",
    "setseed",
    "sleep_ms",
    "stats",
    "write_log",
}
"""Scalar functions that do more than compute, or tell of the process."""

_READ_FROM = {
    "BASE_TABLE",
    "EMPTY",
    "EXPRESSION_LIST",
    "JOIN",
    "PIVOT",
    "SHOW_REF",
    "SUBQUERY",
    "TABLE_FUNCTION",
}
_PIVOT_USING = re.compile(rb"USING\s+[^\s(]", re.IGNORECASE)  # of a join: USING (column)
_EXPLAIN = re.compile(r"\s*EXPLAIN\b(\s+ANALYZE\b)?(\s*\([^()]*\))?", re.IGNORECASE)

# The first parameter loads numpy and more, a third of a second that no query should wait for.
with duckdb.connect(config={"threads": 1}) as _first:
    _first.execute("SELECT ?", [""]).to_arrow_table()


def ask(request: Request) -> tuple[pa.Table, Cut | None]:
    """Rows up to the limits.

    Raises:
        RefusedError: If it is more than one reading statement over the views.
        BeyondLimitError: If a limit was met before the first row.
        duckdb.Error: If the query fails.
    """
    with confined(request) as connection:
        _check(connection, request.query, set(request.views))
        watch = threading.Timer(request.limits.seconds, connection.interrupt)
        watch.daemon = True
        watch.start()
        # The file is open; the system itself opens nothing else from here on.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return _read(connection, request)


def confined(request: Request) -> duckdb.DuckDBPyConnection:
    """A connection that reaches nothing but its file, whatever it is told to run."""
    assert request.file is not None  # noqa: S101 - narrows the type
    memory = f"{request.limits.memory // 2**20}MiB"
    config: dict[str, Any] = _SETTINGS | {"memory_limit": memory}
    connection = duckdb.connect(request.file, read_only=True, config=config)
    connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
    return connection


def _read(connection: duckdb.DuckDBPyConnection, request: Request) -> tuple[pa.Table, Cut | None]:
    rows: Rows | None = None
    try:
        reader = connection.execute(request.query).to_arrow_reader(_ROWS_AT_ONCE)
        rows = Rows(reader.schema, request.limits)
        rows.take(reader)
    except (duckdb.InterruptException, duckdb.OutOfMemoryException, OSError, MemoryError) as error:
        # Arrow's reader knows errors of the operating system only.
        if isinstance(error, OSError) and "INTERRUPT" not in str(error):
            raise
        which: Cut | None = None
        if "interrupt" in str(error).lower():
            which = "time"
        if which is None or rows is None or not rows.any:
            raise BeyondLimitError("memory" if which is None else "time") from error
        rows.cut = which
    return tidy(rows.table()), rows.cut


def _check(connection: duckdb.DuckDBPyConnection, query: str, views: set[str]) -> None:
    try:
        require_reading(query)
    except NotReadingError as error:
        raise RefusedError(str(error)) from error
    tree = _tree(connection, query)
    nodes = list(_nodes(tree))
    known = {
        name
        for (name,) in connection.execute(
            "SELECT lower(table_name) FROM information_schema.tables"
        ).fetchall()
    }
    named = {
        str(one["key"]).lower() for node in nodes for one in node.get("cte_map", {}).get("map", [])
    }
    # A name that hides a table here might not hide it there.
    allowed = views | (named - known)
    for node in nodes:
        _check_node(node, allowed)


def _check_node(node: dict[str, Any], allowed: set[str]) -> None:
    match node:
        case {"type": "BASE_TABLE", "table_name": name, "schema_name": schema, "catalog_name": of}:
            if of or schema not in {"", "main"} or name.lower() not in allowed:
                full = ".".join(part for part in (of, schema, name) if part)
                raise RefusedError(f"{full!r} is none of the catalog's views: {_listed(allowed)}")
        case {"type": "SHOW_REF", "query": None}:
            raise RefusedError(f"the catalog's views are {_listed(allowed)}")
        case {"type": "TABLE_FUNCTION", "function": {"function_name": name}}:
            if name.lower() not in TABLE_FUNCTIONS:
                raise RefusedError(f"the table function {name!r} is not allowed here")
        case {"class": "FUNCTION", "function_name": name}:
            if name.lower() in REFUSED_FUNCTIONS:
                raise RefusedError(f"the function {name!r} is not allowed here")
        case {"type": kind, "sample": _, "query_location": _} if kind not in _READ_FROM:
            raise RefusedError(f"{kind.lower()} is not allowed here")
        case _:
            pass


def _listed(views: set[str]) -> str:
    return ", ".join(sorted(views))


def _tree(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """What DuckDB's own parser makes of a query."""
    for text in _readable(query):
        [found] = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone() or [""]
        tree = json.loads(found)
        if not tree["error"] and len(tree["statements"]) == 1:
            return tree
    raise RefusedError(
        "this form of query cannot be checked; write it as one SELECT, and a PIVOT with the "
        "values of its columns: PIVOT scores ON layer IN (0, 1) USING avg(value)"
    )


def _readable(query: str) -> Iterator[str]:
    """The query in the forms that DuckDB can serialise, which name the same tables."""
    bare = _EXPLAIN.sub("", query, count=1) if _EXPLAIN.match(query) else query
    yield bare
    # A PIVOT whose values are found in the data is several statements; with values it is one.
    text = bare.encode()
    keywords = [at for at, kind in duckdb.tokenize(bare) if kind == duckdb.token_type.keyword]
    for at in reversed(keywords):
        if _PIVOT_USING.match(text, at):
            text = text[:at] + b"IN ('') " + text[at:]
    yield text.decode()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON tree, of any depth."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
