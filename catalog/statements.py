"""Which texts are one statement of DuckDB that reads."""

from functools import cache

import duckdb

_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_AROUND_A_PIVOT = {duckdb.StatementType.CREATE, duckdb.StatementType.TRANSACTION}


class NotReadingError(Exception):
    """A text that is something else; the message says what."""


def require_reading(query: str) -> None:
    """Refuse what is not one SELECT or EXPLAIN.

    Raises:
        NotReadingError: If it is no SQL, several statements, or one that does not read.
    """
    try:
        statements = _parser().cursor().extract_statements(query)
    except duckdb.Error as error:
        raise NotReadingError(f"the query is not SQL that DuckDB reads: {error}") from error
    statements = _as_written(statements)
    if len(statements) != 1:
        raise NotReadingError(f"expected one statement, got {len(statements)}; run them one by one")
    if statements[0].type not in _READING:
        raise NotReadingError(
            f"expected a query that reads (SELECT), got {statements[0].type.name}; "
            "the catalog is written by `heads ingest`, `heads classify` and `heads labels import`"
        )


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    # Not duckdb's own default connection, which is the user's: what DuckDB puts around a PIVOT
    # depends on whether that is within a transaction.
    return duckdb.connect(":memory:")


def _as_written(statements: list[duckdb.Statement]) -> list[duckdb.Statement]:
    """Without what DuckDB itself puts before a PIVOT, an ENUM of the values that it finds.

    What it makes of one statement has no text of its own; of several, one has.
    """
    if any(statement.query for statement in statements):
        return statements
    return [one for one in statements if one.type not in _AROUND_A_PIVOT] or statements
