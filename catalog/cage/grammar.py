"""What of PostgreSQL's grammar a stranger may write: all that is not named here is refused.

The parser is PostgreSQL's own, as a library, so that it reads a query as the server will.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import postgast
from google.protobuf.message import Message
from postgast.walk import walk

from catalog.cage.limits import RefusedError

_NODES = {
    "A_ArrayExpr",
    "A_Const",
    "A_Expr",
    "A_Indices",
    "A_Indirection",
    "A_Star",
    "Alias",
    "BitString",
    "BoolExpr",
    "Boolean",
    "BooleanTest",
    "CTECycleClause",
    "CTESearchClause",
    "CaseExpr",
    "CaseWhen",
    "CoalesceExpr",
    "CollateClause",
    "ColumnRef",
    "CommonTableExpr",
    "DefElem",
    "ExplainStmt",
    "Float",
    "FuncCall",
    "GroupingFunc",
    "GroupingSet",
    "Integer",
    "JoinExpr",
    "List",
    "MinMaxExpr",
    "NamedArgExpr",
    "Node",  # an empty one: nothing stands where something could
    "NullTest",
    "RangeFunction",
    "RangeSubselect",
    "RangeTableSample",
    "RangeVar",
    "ResTarget",
    "RowExpr",
    "SQLValueFunction",
    "SelectStmt",
    "SortBy",
    "String",
    "SubLink",
    "TypeCast",
    "TypeName",
    "WindowDef",
    "WithClause",
}
_TYPES = {
    "bool",
    "bpchar",
    "bytea",
    "date",
    "float4",
    "float8",
    "int2",
    "int4",
    "int8",
    "interval",
    "json",
    "jsonb",
    "numeric",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
    "varchar",
}
_SYSTEM = "pg_catalog"

STABLE_FUNCTIONS = {
    "age",
    "array_to_string",
    "concat",
    "concat_ws",
    "date",
    "date_add",
    "date_bin",
    "date_part",
    "date_subtract",
    "date_trunc",
    "extract",
    "generate_series",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "length",
    "now",
    "numeric",
    "overlaps",
    "pg_typeof",
    "quote_literal",
    "random",
    "row_to_json",
    "time",
    "timestamp",
    "timestamptz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
}
"""Harmless, though they are no functions of their arguments alone."""

AMPLIFYING_FUNCTIONS = {"array_fill", "format", "lpad", "repeat", "rpad"}
"""They make gigabytes of a few characters, in a server's memory that no setting limits."""


@dataclass(frozen=True)
class Named:
    """What a query names, to be looked up in the database."""

    functions: set[str] = field(default_factory=set)
    common_tables: set[str] = field(default_factory=set)


def check(query: str, views: set[str], schema: str) -> Named:
    """Refuse a query whose text is more than one reading statement over the views.

    Args:
        query: As a stranger wrote it.
        views: What may be read.
        schema: Where these are.

    Raises:
        RefusedError: Naming what is not allowed.
    """
    named = Named()
    tables: list[Any] = []
    for node in _inside(_only(query)):
        kind = type(node).__name__
        if kind not in _NODES:
            raise RefusedError(f"{kind} is not allowed here; write one SELECT over the views")
        match kind:
            case "RangeVar":
                tables.append(node)
            case "CommonTableExpr":
                named.common_tables.add(node.ctename)
            case "FuncCall":
                named.functions.add(_plain_name(_names(node.funcname)))
            case _:
                _check_names(kind, node)
    for table in tables:
        _require_view(table, views | named.common_tables, schema)
    return named


def _only(query: str) -> Message:
    try:
        statements = postgast.parse(query).stmts
    except postgast.PgQueryError as error:
        raise RefusedError(f"the query is not SQL that PostgreSQL reads: {error}") from error
    if len(statements) != 1:
        raise RefusedError(f"expected one statement, got {len(statements)}; run them one by one")
    statement: Message = statements[0].stmt
    kind = _kind(statement).removesuffix("_stmt")
    if kind not in {"select", "explain"}:
        raise RefusedError(f"expected a query that reads (SELECT), got {kind}")
    return statement


def _check_names(kind: str, node: Any) -> None:
    match kind:
        case "A_Expr":
            _plain_name(_names(node.name))
        case "TypeName":
            _require_type(_plain_name(_names(node.names)))
        case "A_Indirection" if any(_kind(part) == "string" for part in node.indirection):
            # (x).name calls the function of this name on x.
            raise RefusedError("(...).name is not allowed here")
        case _:
            pass


def _kind(node: Message) -> str:
    return str(node.WhichOneof("node"))


def _inside(statement: Message) -> Iterator[Any]:
    return (node for _, node in walk(statement))


def _names(parts: Any) -> list[str]:
    return [part.string.sval for part in parts]


def _plain_name(names: list[str]) -> str:
    """The last of these, of which the first may only be the system's own schema."""
    if names[:-1] not in ([], [_SYSTEM]):
        raise RefusedError(f"{'.'.join(names)!r} is not allowed here")
    return names[-1]


def _require_type(name: str) -> None:
    if name not in _TYPES:
        raise RefusedError(f"the type {name!r} is not allowed here")


def _require_view(table: Any, allowed: set[str], schema: str) -> None:
    if table.catalogname or table.schemaname not in {"", schema} or table.relname not in allowed:
        parts = (table.catalogname, table.schemaname, table.relname)
        name = ".".join(part for part in parts if part)
        raise RefusedError(f"{name!r} is none of the catalog's views: {', '.join(sorted(allowed))}")
