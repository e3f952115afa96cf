"""The catalog as Python users meet it: `catalog.connect(url).sql(...)`."""

import contextlib
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from catalog import publishing, schema, sql
from catalog.database import Database, Reader
from catalog.errors import HeadsError
from catalog.orm import State
from catalog.settings import load_settings


class Catalog:
    """A catalog database whose schema is this release's."""

    def __init__(self, database: Database) -> None:
        """Wrap a database; `connect` is the usual way to one."""
        self.database = database

    def __repr__(self) -> str:
        return f"<Catalog {self.database.name}>"

    def sql(self, query: str, /, **parameters: Any) -> sql.Result:
        """Ask the catalog a question in SQL.

        Args:
            query: One reading statement over the views `models`, `heads`, `metrics`, `scores`,
                `coverage`, `vectors`, `compositions`, `salient_operations`, `stored_patterns`,
                `prompt_tokens`, `relation_correlations`, `labels`, `taxonomies`, `runs`, `probes`,
                `relations` and `score_runs`.
            parameters: Values for `:name` in the query.

        Returns:
            A result that gives `.arrow()`, `.polars()`, `.pandas()` or `.rows()`.

        Raises:
            QueryError: If the query writes, is not one statement, or fails.
            LockedError: If another process kept a DuckDB file for too long.
        """
        with self.database.reading() as connection:
            return sql.run(connection, query, parameters)

    def stamp(self) -> str:
        """What the catalog is at: another text after everything that writes into it.

        Raises:
            SchemaError: If its schema is no longer this release's.
        """
        with self.database.reading() as connection:
            schema.require_current(connection, self.database.name)
            return str(connection.scalar(select(State.stamp)))


def connect(url: str | None = None, *, create: bool = False) -> Catalog:
    """Open a catalog.

    Args:
        url: `duckdb:///FILE` or `postgresql+psycopg://...`; by default what
            `HEADS_DATABASE_URL` says, or `heads.duckdb` in the working directory.
        create: Make the tables where there are none yet.

    Raises:
        SchemaError: If there is no catalog, or its schema is older or newer than this release's.
    """
    database = database_at(url)
    if create and _is_empty(database):
        schema.upgrade(database)
    with database.reading() as connection:
        schema.require_current(connection, database.name)
    _reap(database)
    return Catalog(database)


def database_at(url: str | None = None) -> Database:
    """The database itself, whatever its schema; by default the settings'."""
    settings = load_settings()
    password = settings.reader_password
    reader = settings.reader_role and Reader(
        settings.reader_role, password.get_secret_value() if password else None
    )
    return Database(
        url or settings.database_url, lock_timeout=settings.lock_timeout, reader=reader or None
    )


def _is_empty(database: Database) -> bool:
    if not database.exists:
        return True
    with database.reading() as connection:
        return schema.current(connection) is None


def _reap(database: Database) -> None:
    """Set right the runs of killed processes, as a courtesy that must not hinder reading."""
    with contextlib.suppress(HeadsError, DBAPIError, OSError):
        publishing.reap(database)
