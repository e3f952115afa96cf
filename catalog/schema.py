"""Bringing a database to this release's schema, and telling when it is not there."""

import importlib.util
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from catalog.database import Database
from catalog.errors import SchemaError

_HISTORY = "migrations"
_MIGRATION_LOCK = 0x68656164  # "head": any number will do, if all migrating processes share it


def _config(connection: Connection | None = None) -> Config:
    spec = importlib.util.find_spec(_HISTORY)
    if spec is None or not spec.origin:
        raise SchemaError("the package `migrations` is not installed; reinstall head-catalog")
    config = Config()
    config.set_main_option("script_location", str(Path(spec.origin).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The revision that this release expects."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaError("the package `migrations` holds no revision; reinstall head-catalog")
    return revision


def current(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


def require_current(connection: Connection, name: str) -> None:
    """Refuse a database that this release would misread.

    Raises:
        SchemaError: If its schema is absent, older or newer.
    """
    found, expected = current(connection), head()
    if found == expected:
        return
    if found is None:
        raise SchemaError(f"{name} holds no catalog; make one with `heads db upgrade`")
    _refuse_newer(found, name)
    raise SchemaError(
        f"{name} has schema {found}, older than this release's {expected}; "
        "bring it up with `heads db upgrade`"
    )


def upgrade(database: Database, revision: str = "head") -> tuple[str | None, str | None]:
    """Bring the schema to `revision`, making the database if there is none.

    Returns:
        The revisions before and after.

    Raises:
        SchemaError: If the database comes from a newer release.
    """
    with database.writing() as connection:
        _wait_in_turn(connection)
        before = current(connection)
        if before is not None:
            _refuse_newer(before, database.name)
        connection.commit()
        command.upgrade(_config(connection), revision)
        connection.commit()
        return before, current(connection)


def downgrade(database: Database, revision: str) -> tuple[str | None, str | None]:
    """Take the schema back to `revision` (`-1`: one step, `base`: drop everything).

    Returns:
        The revisions before and after.

    Raises:
        SchemaError: If there is no such revision.
    """
    with database.writing() as connection:
        _wait_in_turn(connection)
        before = current(connection)
        connection.commit()
        try:
            command.downgrade(_config(connection), revision)
        except CommandError as error:
            raise SchemaError(f"cannot go back to {revision!r}: {error}") from error
        connection.commit()
        return before, current(connection)


def check(database: Database) -> str:
    """Verify that the database is at this release's revision and has exactly its tables.

    Returns:
        The revision.

    Raises:
        SchemaError: If the revision differs, or a table differs from its declaration.
    """
    if not database.exists:
        raise SchemaError(f"there is no catalog at {database.name}; run `heads db upgrade`")
    # Autogenerate reads through temporary objects on some databases: hence the writing side.
    with database.writing() as connection:
        require_current(connection, database.name)
        connection.commit()
        try:
            command.check(_config(connection))
        except CommandError as error:
            raise SchemaError(f"{database.name} is not as declared: {error}") from error
        return head()


def _refuse_newer(found: str, name: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise SchemaError(
            f"{name} has schema {found}, which this release does not know: it was written by a "
            "newer one; upgrade with `pip install --upgrade head-catalog`"
        )


def _wait_in_turn(connection: Connection) -> None:
    """Two processes that migrate one PostgreSQL at once do so one after the other."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})")
