"""Read-only SQL in, Arrow out: the same on DuckDB and PostgreSQL."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import DBAPIError, StatementError

from catalog.errors import QueryError
from catalog.statements import NotReadingError, require_reading
from catalog.tables import from_postgresql, tidy

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_POSTGRESQL_READING = re.compile(r"(SELECT|WITH|VALUES|TABLE|EXPLAIN|SHOW)\b", re.IGNORECASE)
_LEADING_COMMENT = re.compile(r"(\s+|--[^\n]*(\n|$)|/\*.*?\*/|\()+", re.DOTALL)


class Result:
    """A table that came out of the catalog."""

    def __init__(self, table: pa.Table) -> None:
        """Wrap an Arrow table."""
        self._table = table

    @property
    def columns(self) -> list[str]:
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def __repr__(self) -> str:
        return f"<Result of {len(self)} rows: {', '.join(self.columns)}>"

    def rows(self) -> list[dict[str, Any]]:
        """Rows as dictionaries, in order; NULL is None."""
        return list(self._table.to_pylist())

    def arrow(self) -> pa.Table:
        return self._table

    def polars(self) -> "pl.DataFrame":
        """A Polars frame; needs the package `polars`."""
        import polars as pl  # noqa: PLC0415 - optional

        frame = pl.from_arrow(self._table)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101 - narrows: a table makes no series
        return frame

    def pandas(self) -> "pd.DataFrame":
        """A pandas frame; needs the package `pandas`."""
        return self._table.to_pandas()


def run(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> Result:
    """Run one reading statement on a connection that cannot write.

    Args:
        connection: From `Database.reading`.
        query: One SELECT, WITH, VALUES or EXPLAIN.
        parameters: Values for `:name` in the query; without any, a colon has no meaning.

    Raises:
        QueryError: If the statement is not one reading statement, or the database refuses it.
    """
    _require_unicode(query, *(parameters or {}).values())
    on_duckdb = connection.dialect.name == "duckdb"
    bound = str(text(query).compile(dialect=connection.dialect)) if parameters else query
    (_require_reading_duckdb if on_duckdb else _require_reading_postgresql)(bound)
    try:
        if parameters:
            result = connection.execute(text(query), parameters)
        else:
            # Without this option a driver would take a percent sign for a placeholder.
            raw = connection.execution_options(no_parameters=True)
            result = raw.exec_driver_sql(query)
        return Result(tidy(result.cursor.to_arrow_table() if on_duckdb else _arrow(result)))
    except (DBAPIError, StatementError) as error:
        reason = str(error.orig or error).strip().split("\n\n")[0]
        raise QueryError(f"the database refused the query: {reason}") from error
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {error}") from error


def _require_unicode(*values: object) -> None:
    """Refuse what a shell hands over of bytes that are no text: drivers stumble over it."""
    for value in values:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise QueryError(f"{value!r} is not UTF-8 text; give it as such") from None


def _require_reading_duckdb(query: str) -> None:
    try:
        require_reading(query)
    except NotReadingError as error:
        raise QueryError(str(error)) from error


def _require_reading_postgresql(query: str) -> None:
    # The transaction is read-only as well, and psycopg prepares what it runs: one statement.
    comment = _LEADING_COMMENT.match(query)
    start = query[comment.end() if comment else 0 :]
    if not _POSTGRESQL_READING.match(start):
        word = start.split(maxsplit=1)[0] if start.strip() else "nothing"
        raise QueryError(
            f"expected a query that reads (SELECT), got {word.upper()}; "
            "the catalog is written by `heads ingest`, `heads classify` and `heads labels import`"
        )


def _arrow(result: CursorResult[Any]) -> pa.Table:
    description = result.cursor.description if result.cursor else ()
    return from_postgresql(description or (), result.fetchall())
