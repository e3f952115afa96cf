"""Many rows at once: Arrow on DuckDB, COPY on PostgreSQL, inside the caller's transaction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from duckdb_sqlalchemy import insert_from_arrow
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Double,
    Integer,
    Table,
    inspect,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from catalog.orm import Base, table

_BATCH = 50_000
_READ = 122_880
"""Rows of a batch that is read from DuckDB: one of its row groups."""
_READ_BYTES = 8 << 20
"""Of CSV that is parsed at once."""
_AS_COPY_READS = pyarrow.csv.WriteOptions(include_header=False)
_AS_COPY_WRITES = {
    # A text is quoted where it is empty, and NULL is not.
    "strings_can_be_null": True,
    "quoted_strings_can_be_null": False,
    "null_values": [""],
    "true_values": ["t"],
    "false_values": ["f"],
}
_LIST = pa.list_(pa.float32())
_ARROW_TYPES: dict[type[TypeEngine[Any]], pa.DataType] = {
    ARRAY: _LIST,
    BigInteger: pa.int64(),  # before Integer, of which it is one
    Integer: pa.int32(),
    Boolean: pa.bool_(),
    Double: pa.float64(),
    DateTime: pa.timestamp("us", tz="UTC"),
}
"""All other columns are texts."""


def insert(connection: Connection, target: Table, rows: pa.Table) -> None:
    """Append `rows` to `target`.

    Args:
        connection: In a transaction.
        target: A table of the catalog.
        rows: Columns as the target's of these names: numbers, texts, or lists of numbers.

    Raises:
        DBAPIError: If the database cannot take them.
    """
    if not rows.num_rows:
        return
    if connection.dialect.name == "duckdb":
        insert_from_arrow(connection, target, rows)
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    columns = ", ".join(map(quote, rows.column_names))
    into = f"COPY {quote(target.name)} ({columns}) FROM STDIN (FORMAT csv, ENCODING 'UTF8')"
    # Arrow writes CSV many times faster than Python makes rows for a driver, and quotes every
    # text, so that an empty one is not taken for NULL.
    with _copy(connection, into) as copy:
        for batch in rows.to_batches(max_chunksize=_BATCH):
            content = pa.BufferOutputStream()
            pyarrow.csv.write_csv(_flat(batch), content, _AS_COPY_READS)
            copy.write(content.getvalue().to_pybytes())


def read(connection: Connection, entity: type[Base], columns: Sequence[str]) -> Iterator[pa.Table]:
    """All rows of a table in batches of some megabytes, however many there are.

    Args:
        connection: In a transaction; for nothing else until the last batch.
        entity: Of the catalog.
        columns: Some of its columns: numbers, booleans, texts, times, JSON (as text) or lists of
            float32.

    Yields:
        Tables that `insert` takes. Those of PostgreSQL come in the order of the mapped keys, in
        which DuckDB finds a metric's scores fastest; DuckDB's as they lie.
    """
    quote = connection.dialect.identifier_preparer.quote_identifier
    source = table(entity)
    chosen = [source.c[name] for name in columns]
    if connection.dialect.name == "duckdb":
        # JSON would come as an extension type of Arrow's.
        names = [
            f"CAST({quote(column.name)} AS VARCHAR) AS {quote(column.name)}"
            if isinstance(column.type, JSON)
            else quote(column.name)
            for column in chosen
        ]
        result = connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {quote(source.name)}")  # noqa: S608 - our own names
        for batch in result.cursor.to_arrow_reader(_READ):
            yield pa.Table.from_batches([batch])
        return
    listed = ", ".join(quote(name) for name in columns)
    order = ", ".join(quote(key.name) for key in inspect(entity).primary_key)
    out = f"SELECT {listed} FROM {quote(source.name)} ORDER BY {order}"  # noqa: S608 - our own names
    with _copy(connection, f"COPY ({out}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')") as copy:
        rows: list[bytes] = []
        size = 0
        for row in copy:
            rows.append(bytes(row))
            size += len(row)
            if size >= _READ_BYTES:
                yield _parsed(b"".join(rows), chosen)
                rows, size = [], 0
        if rows:
            yield _parsed(b"".join(rows), chosen)


@contextmanager
def _copy(connection: Connection, statement: str) -> Iterator[Any]:
    """The driver's COPY; its errors are SQLAlchemy's, as those of any other statement."""
    cursor = connection.connection.cursor()
    driver = connection.dialect.loaded_dbapi.Error
    try:
        with cursor.copy(statement) as copy:
            yield copy
    except driver as error:
        raise DBAPIError.instance(
            statement, None, error, driver, dialect=connection.dialect
        ) from error
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


def _parsed(content: bytes, columns: Sequence[Column[Any]]) -> pa.Table:
    """What COPY wrote, one row or more."""
    types = {column.name: _arrow_type(column) for column in columns}
    read = pyarrow.csv.read_csv(
        pa.BufferReader(content),
        pyarrow.csv.ReadOptions(column_names=list(types), block_size=len(content) + 1),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(
            column_types={k: pa.string() if v == _LIST else v for k, v in types.items()},
            **_AS_COPY_WRITES,
        ),
    )
    return pa.table({k: _lists(read[k]) if v == _LIST else read[k] for k, v in types.items()})


def _lists(spelled: pa.ChunkedArray) -> pa.ChunkedArray:
    parts = pc.split_pattern(pc.utf8_trim(spelled, "{}"), ",")
    empty = pa.scalar([], pa.list_(pa.string()))
    return pc.if_else(pc.equal(spelled, "{}"), empty, parts).cast(_LIST)


def _arrow_type(column: Column[Any]) -> pa.DataType:
    for kind, found in _ARROW_TYPES.items():
        if isinstance(column.type, kind):
            return found
    return pa.string()
