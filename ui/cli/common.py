"""What commands share: the catalog's option, and one vocabulary of output formats."""

import importlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from catalog import Catalog, Result, connect
from catalog.catalog import database_at
from catalog.database import Database
from catalog.errors import MissingExtraError, UsageError
from catalog.settings import load_settings
from ui import formats

_TOKENS = {"token", "output", "prompt", "query_token", "key_token"}
"""Columns of texts whose spaces and line ends count: a table shows them in quotes."""

messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Format(StrEnum):
    """How a table is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@dataclass(frozen=True)
class State:
    """What the root command was given."""

    db: str | None


Db = Annotated[
    str | None,
    typer.Option("--db", metavar="URL", help="The catalog, if not the one in the settings."),
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", "-f", help="By default a table, or what the suffix of -o says."),
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write here, not to stdout.")
]
ThresholdsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="METRIC=T", help="Threshold of the rules on a metric; may be repeated."
    ),
]


def url_of(context: typer.Context, db: str | None) -> str:
    """The catalog's URL: the command's own option, the root's, or the settings'."""
    state: State = context.obj
    return db or state.db or load_settings().database_url


def open_catalog(context: typer.Context, db: str | None, *, create: bool = False) -> Catalog:
    return connect(url_of(context, db), create=create)


def database_of(context: typer.Context, db: str | None) -> Database:
    """The database itself, whatever its schema."""
    return database_at(url_of(context, db))


def require(module: str, extra: str) -> ModuleType:
    """Import a part of the project whose packages are optional.

    Raises:
        MissingExtraError: Naming the command that installs them.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this needs the package {error.name}, which is not installed; "
            f"install it with `pip install 'head-catalog[{extra}]'`"
        ) from error


def thresholds(given: Sequence[str] | None) -> dict[str, float]:
    """What `ThresholdsOption` was given: thresholds by metric.

    Raises:
        UsageError: If something is no metric with a number.
    """
    found = {}
    for text in given or ():
        metric, _, value = text.partition("=")
        try:
            found[metric] = float(value)
        except ValueError:
            raise UsageError(
                f"--set {text}: expected METRIC=THRESHOLD, such as induction=0.3"
            ) from None
    return found


def write(result: Result, form: Format | None, output: Path | None) -> None:
    """Write a result to stdout or a file.

    Raises:
        UsageError: If the file's suffix says nothing, the file cannot be written, or the format
            has no such values.
    """
    chosen = form or _form_of(output)
    try:
        content = _bytes(result, chosen)
    except pa.ArrowException as error:
        raise UsageError(
            f"the result cannot be written as {chosen} ({error}); cast that column, or use json"
        ) from error
    if output is None:
        if chosen is Format.PARQUET and sys.stdout.isatty():
            raise UsageError("Parquet is no text; give a file with -o FILE")
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error


def _form_of(output: Path | None) -> Format:
    if output is None:
        return Format.TABLE
    suffix = output.suffix.removeprefix(".")
    if suffix == "txt":
        return Format.TABLE
    try:
        return Format(suffix)
    except ValueError:
        raise UsageError(
            f"the suffix of {output} names no format; give --format table, csv, json or parquet"
        ) from None


def _bytes(result: Result, form: Format) -> bytes:
    match form:
        case Format.TABLE:
            return _table(result.rows(), result.columns).encode()
        case Format.JSON:
            return formats.json_text(result)
        case Format.CSV:
            return formats.csv(result)
        case Format.PARQUET:
            return formats.parquet(result)


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numbers = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(column, row[column]) for column in columns))
    # Data in a pipe must not be folded to some terminal's width.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _cell(column: str, value: object) -> str:
    if value is None:
        return ""
    if column in _TOKENS and isinstance(value, str):
        return repr(value)
    return f"{value:.4g}" if isinstance(value, float) else str(formats.plain(value))
