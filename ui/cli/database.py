"""The database: `db upgrade`, `db downgrade`, `db check`, `db size`, `db reader`."""

from typing import Annotated

import typer

from catalog import patterns, roles, schema
from catalog.database import Database
from catalog.jobs import schema as jobs_schema
from catalog.jobs.connections import JobsDatabase
from catalog.settings import load_settings
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
    if before != after and (readers := roles.renew(database)):
        messages.print(f"it can still be read by {', '.join(readers)}")
    if _has_jobs(database):
        messages.print(f"its job store is at schema {jobs_schema.upgrade(database)[1]}")


@group.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="-1: one step back; base: drop everything.")],
    jobs: Annotated[
        bool, typer.Option("--jobs", help="The job store's schema, not the catalog's.")
    ] = False,
    db: Db = None,
) -> None:
    """Take the schema back: the catalog's or, with --jobs, the job store's; base takes both.

    Example: heads db downgrade 0001

    Example: heads db downgrade -1 --jobs
    """
    database = database_of(context, db)
    if not jobs:
        _, after = schema.downgrade(database, revision)
        messages.print(f"{database.name} is at schema {after or 'none'}")
    if jobs or (revision == "base" and _has_jobs(database)):
        _, after = jobs_schema.downgrade(database, revision)
        messages.print(f"its job store is at schema {after or 'none'}")


@group.command()
def check(context: typer.Context, db: Db = None) -> None:
    """Verify that the database has this release's schema, and exactly its tables.

    Example: heads db check
    """
    database = database_of(context, db)
    messages.print(f"{database.name} is as declared, at schema {schema.check(database)}")
    if _has_jobs(database):
        messages.print(f"its job store is as declared, at schema {jobs_schema.check(database)}")


@group.command()
def size(
    context: typer.Context, form: FormatOption = None, output: OutputOption = None, db: Db = None
) -> None:
    """How many bytes the catalog takes up, its stored patterns counted.

    Example: heads db size --format json
    """
    write(patterns.size(open_catalog(context, db)), form, output)


@group.command()
def reader(
    context: typer.Context,
    role: Annotated[str, typer.Argument(help="On the server; made if there is none.")],
    db: Db = None,
) -> None:
    """Let a role of the PostgreSQL server read the catalog, and not write it.

    Its password is what HEADS_READER_PASSWORD says; without that it stays as it is. With a
    superuser's --db functions that could hinder others are taken from everybody but the owner.

    Example: heads db reader heads_reader
    """
    database = database_of(context, db)
    password = load_settings().reader_password
    made = roles.let_read(database, role, password.get_secret_value() if password else None)
    messages.print(f"{database.name} can be read by {'the new role ' if made.is_new else ''}{role}")
    if not made.is_hardened:
        messages.print(
            "functions such as pg_sleep, set_config and pg_advisory_lock are left to it, since "
            "only a superuser can take them: repeat this with a superuser's --db where readers "
            "are strangers"
        )


def _has_jobs(database: Database) -> bool:
    """Whether there are jobs to care for: beside a DuckDB file the first one makes the store."""
    return JobsDatabase(database).exists


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="db")
