"""What a table holds, as one number that the database computes itself.

The sum, modulo 2^64, of the first eight bytes of each row's MD5: the same in any order of rows and
on both databases. In a row's text floats stand by their bits, so that the last digit counts, and
texts by their own MD5, so that no text can look like two columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
)

_MODULUS = 1 << 64
_FIRST_BYTES = {
    "duckdb": "CAST('0x' || substr({digest}, 1, 16) AS UBIGINT)",
    "postgresql": "CAST(CAST('x' || substr({digest}, 1, 16) AS BIT(64)) AS BIGINT)",
}
# hex() of DuckDB writes capitals, encode() of PostgreSQL small letters.
_DOUBLE = {
    "duckdb": "lower(hex(CAST(CAST({column} AS BIT) AS BLOB)))",
    "postgresql": "encode(float8send({column}), 'hex')",
}
_FLOATS = {
    "duckdb": "array_to_string(list_transform({column}, lambda one: "
    "coalesce(lower(hex(CAST(CAST(one AS BIT) AS BLOB))), '~')), ',')",
    "postgresql": "(SELECT string_agg(coalesce(encode(float4send(one), 'hex'), '~'), ',' "
    "ORDER BY place) FROM unnest({column}) WITH ORDINALITY AS listed (one, place))",
}
_TIME = {
    "duckdb": "CAST(epoch_us({column}) AS VARCHAR)",
    "postgresql": "CAST(CAST(extract(epoch FROM {column}) * 1000000 AS BIGINT) AS VARCHAR)",
}


@dataclass(frozen=True)
class Checksum:
    """Of one table."""

    rows: int
    digest: str
    """16 hexadecimal digits."""

    def __str__(self) -> str:
        return f"{self.rows:,} rows, {self.digest}"


def of_table(connection: Connection, table: Table, columns: Sequence[str]) -> Checksum:
    """Checksum of some columns of all rows."""
    dialect = connection.dialect.name
    quote = connection.dialect.identifier_preparer.quote_identifier
    texts = ", ".join(
        f"coalesce({_text(table.c[name], quote(name), dialect)}, '~')" for name in columns
    )
    number = _FIRST_BYTES[dialect].format(digest=f"md5(concat_ws('|', {texts}))")
    query = f"SELECT count(*), sum({number}) FROM {quote(table.name)}"  # noqa: S608 - our own names
    count, total = connection.exec_driver_sql(query).one()
    return of_sum(count, int(total or 0))


def of_sum(rows: int, total: int) -> Checksum:
    return Checksum(rows, f"{total % _MODULUS:016x}")


def first_bytes(digest: str) -> int:
    """What one row's digest, in hexadecimal digits, adds to the sum."""
    return int(digest[:16], 16)


def _text(column: Column[Any], quoted: str, dialect: str) -> str:
    match column.type:
        case ARRAY():
            # An empty list and NULL would both be nothing.
            listed = _FLOATS[dialect].format(column=quoted)
            return f"CASE WHEN {quoted} IS NOT NULL THEN '[' || coalesce({listed}, '') || ']' END"
        case Double():
            return _DOUBLE[dialect].format(column=quoted)
        case DateTime():
            return _TIME[dialect].format(column=quoted)
        case BigInteger() | Integer() | Boolean():
            return f"CAST({quoted} AS VARCHAR)"
        case JSON():
            return f"md5(CAST({quoted} AS VARCHAR))"
        case _:
            return f"md5({quoted})"
