"""A catalog from one database into another: `copy`."""

from typing import Annotated

import pyarrow as pa
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from catalog import Result, copying
from catalog.database import Database
from catalog.settings import load_settings
from ui.cli.common import FormatOption, OutputOption, messages, write


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE_URL", help="Only read.")],
    target: Annotated[str, typer.Argument(metavar="TARGET_URL", help="New, or empty.")],
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Copy a whole catalog, between DuckDB and PostgreSQL in either direction, and verify it.

    Prints rows and checksum of every table, as the source has it and as read back from the
    target. Where anything differs, or the copy is stopped, the target stays as it was. Jobs and
    schedules are no part of a catalog, and stay where they are.

    Example: heads copy duckdb:///heads.duckdb postgresql+psycopg://me@server/heads

    Example: heads copy postgresql+psycopg://me@server/heads duckdb:///backup.duckdb
    """
    # Not under a reader's role, which sees the views only.
    patience = load_settings().lock_timeout
    there, here = (Database(url, lock_timeout=patience) for url in (source, target))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        done = copying.copy(
            there,
            here,
            lambda name, rows, total: bars.update(
                task, description=name, completed=rows, total=total or None
            ),
        )
    if done.closed_runs:
        messages.print(
            f"{done.closed_runs} runs are under way in {there.name}; in the copy they have failed"
        )
    write(Result(_table(done)), form, output)
    messages.print(f"{here.name} holds what {there.name} holds")


def _table(done: copying.Copied) -> pa.Table:
    return pa.table(
        {
            "table": [one.name for one in done.tables],
            "rows": [one.source.rows for one in done.tables],
            "checksum": [one.source.digest for one in done.tables],
            "rows_read_back": [one.target.rows for one in done.tables],
            "checksum_read_back": [one.target.digest for one in done.tables],
        }
    )


def add_to(app: typer.Typer) -> None:
    app.command()(copy)
