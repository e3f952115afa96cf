"""The database: `db upgrade`, `db downgrade`, `db check`, `db size`."""

from typing import Annotated

import typer

from catalog import patterns, schema
from ui.cli.common import (
    Db,
    FormatOption,
    OutputOption,
    database_of,
    messages,
    open_catalog,
    write,
)

group = typer.Typer(help="Make, upgrade and check the database.", no_args_is_help=True)


@group.command()
def upgrade(context: typer.Context, db: Db = None) -> None:
    """Bring the schema to this release's, making the database where there is none.

    Example: heads db upgrade --db postgresql+psycopg://me@server/heads
    """
    database = database_of(context, db)
    before, after = schema.upgrade(database)
    messages.print(
        f"{database.name} is at schema {after}"
        + ("" if before == after else f" (was {before or 'empty'})")
    )


@group.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="-1: one step back; base: drop everything.")],
    db: Db = None,
) -> None:
    """Take the schema back.

    Example: heads db downgrade 0001
    """
    database = database_of(context, db)
    _, after = schema.downgrade(database, revision)
    messages.print(f"{database.name} is at schema {after or 'none'}")


@group.command()
def check(context: typer.Context, db: Db = None) -> None:
    """Verify that the database has this release's schema, and exactly its tables.

    Example: heads db check
    """
    database = database_of(context, db)
    messages.print(f"{database.name} is as declared, at schema {schema.check(database)}")


@group.command()
def size(
    context: typer.Context, form: FormatOption = None, output: OutputOption = None, db: Db = None
) -> None:
    """How many bytes the catalog takes up, its stored patterns counted.

    Example: heads db size --format json
    """
    write(patterns.size(open_catalog(context, db)), form, output)


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="db")
