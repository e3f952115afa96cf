"""Tables as files: CSV, JSON and Parquet, the same from a shell and from the page."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from catalog import Result


def csv(result: Result) -> bytes:
    """CSV has no nested values: those become JSON text."""
    table = result.arrow()
    columns = [
        pa.array([None if v is None else json.dumps(v, default=plain) for v in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns, names=table.column_names), buffer)
    return buffer.getvalue()


def json_text(result: Result) -> bytes:
    """A list of objects, one for each row."""
    return (json.dumps(result.rows(), default=plain, indent=1) + "\n").encode()


def parquet(result: Result) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(result.arrow(), buffer)
    return buffer.getvalue()


def plain(value: object) -> Any:
    """What JSON has no type for, as text."""
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else str(value)
