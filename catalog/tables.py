"""Arrow tables out of what drivers give, the same from DuckDB and PostgreSQL."""

import json
from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa

# Of PostgreSQL's type numbers those that a result of ours can have; all others come as text.
_ARROW_TYPES = {
    16: pa.bool_(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    700: pa.float32(),
    701: pa.float64(),
    1021: pa.list_(pa.float32()),
    1022: pa.list_(pa.float64()),
    1082: pa.date32(),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
    1700: pa.float64(),
}


def tidy(table: pa.Table) -> pa.Table:
    """Make column names unique (value, value_1 ...) and sums of integers integers again."""
    seen: dict[str, int] = {}
    names, columns = [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        count = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}_{count}" if count else name)
        whole = pa.types.is_decimal(column.type) and column.type.scale == 0
        columns.append(column.cast(pa.int64(), safe=False) if whole else column)
    return pa.table(columns, names=names)


def from_postgresql(description: Sequence[Any], rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Rows of psycopg; `description` is its cursor's, of (name, type number, ...)."""
    arrays = []
    for index, column in enumerate(description):
        kind = _ARROW_TYPES.get(cast("int", column[1]), pa.string())
        values = [row[index] for row in rows]
        if kind == pa.string():
            values = [None if value is None else _text(value) for value in values]
        elif kind == pa.float64():
            values = [value if value is None else float(value) for value in values]
        arrays.append(pa.array(values, type=kind))
    return pa.Table.from_arrays(arrays, names=[column[0] for column in description])


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
