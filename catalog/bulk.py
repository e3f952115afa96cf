"""Bulk inserts: Arrow on DuckDB, COPY on PostgreSQL, inside the caller's transaction."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from duckdb_sqlalchemy import insert_from_arrow
from sqlalchemy import Connection, Table

_BATCH = 50_000
_AS_COPY_READS = pyarrow.csv.WriteOptions(include_header=False)


def insert(connection: Connection, target: Table, rows: pa.Table) -> None:
    """Append `rows` to `target`.

    Args:
        connection: In a transaction.
        target: A table of the catalog.
        rows: Columns as the target's of these names: numbers, texts, or lists of numbers.
    """
    if not rows.num_rows:
        return
    if connection.dialect.name == "duckdb":
        insert_from_arrow(connection, target, rows)
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    columns = ", ".join(map(quote, rows.column_names))
    cursor = connection.connection.cursor()
    try:
        # Arrow writes CSV many times faster than Python makes rows for a driver, and quotes every
        # text, so that an empty one is not taken for NULL.
        with cursor.copy(
            f"COPY {quote(target.name)} ({columns}) FROM STDIN (FORMAT csv, ENCODING 'UTF8')"
        ) as copy:
            for batch in rows.to_batches(max_chunksize=_BATCH):
                content = pa.BufferOutputStream()
                pyarrow.csv.write_csv(_flat(batch), content, _AS_COPY_READS)
                copy.write(content.getvalue().to_pybytes())
    finally:
        cursor.close()


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Lists as PostgreSQL spells arrays: {1.5,2}."""
    columns = [
        pc.binary_join_element_wise(
            "{", pc.binary_join(column.cast(pa.list_(pa.string())), ","), "}", ""
        )
        if pa.types.is_list(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
