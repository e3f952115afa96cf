"""Bulk inserts: Arrow on DuckDB, COPY on PostgreSQL, inside the caller's transaction."""

import pyarrow as pa
from duckdb_sqlalchemy import insert_from_arrow
from sqlalchemy import Connection, Table


def insert(connection: Connection, target: Table, rows: pa.Table) -> None:
    """Append `rows` to `target`; column names must be the target's."""
    if not rows.num_rows:
        return
    if connection.dialect.name == "duckdb":
        insert_from_arrow(connection, target, rows)
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    columns = ", ".join(map(quote, rows.column_names))
    cursor = connection.connection.cursor()
    try:
        with cursor.copy(f"COPY {quote(target.name)} ({columns}) FROM STDIN") as copy:
            for batch in rows.to_batches(max_chunksize=50_000):
                for row in zip(*batch.to_pydict().values(), strict=True):
                    copy.write_row(row)
    finally:
        cursor.close()
