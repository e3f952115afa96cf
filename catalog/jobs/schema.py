"""The job store's own tables: making them, taking them back, telling what is wrong with them."""

import contextlib
from collections.abc import Iterator

from sqlalchemy import Connection

from catalog import schema
from catalog.database import Database
from catalog.errors import SchemaError
from catalog.jobs.connections import JobsDatabase
from catalog.schema import JOBS


def open_database(database: Database) -> JobsDatabase:
    """The job store's database at this release's schema.

    A file is made where there is none, and brought up where it is older, by one of the processes
    that open it at once; on a server that is what `heads db upgrade` is for.

    Raises:
        SchemaError: If a server's tables are absent or older, or any are newer than this release's.
        StorageError: If the database is away, or cannot be written.
    """
    jobs = JobsDatabase(database)
    if jobs.exists:
        with jobs.connect(writable=False) as connection:
            found = schema.current(connection, JOBS)
            if found == schema.head(JOBS):
                return jobs
            if not jobs.is_sqlite:
                schema.require_current(connection, jobs.name, JOBS)
    upgrade(database)
    return jobs


def upgrade(database: Database) -> tuple[str | None, str | None]:
    """Bring the job store to this release's schema, making it if there is none.

    Returns:
        The revisions before and after.

    Raises:
        SchemaError: If it comes from a newer release.
        StorageError: If the database is away, or cannot be written.
    """
    with _changing(database) as (connection, name):
        return schema.bring_up(connection, name, JOBS)


def downgrade(database: Database, revision: str) -> tuple[str | None, str | None]:
    """Take the job store back to `revision` (`-1`: one step, `base`: drop all jobs).

    Returns:
        The revisions before and after.

    Raises:
        SchemaError: If there is no such revision.
        StorageError: If the database is away, or cannot be written.
    """
    with _changing(database) as (connection, _):
        return schema.take_back(connection, revision, JOBS)


def check(database: Database) -> str:
    """Verify that the job store is at this release's revision and has exactly its tables.

    Returns:
        The revision.

    Raises:
        SchemaError: If it is absent, its revision differs, or a table differs from its
            declaration.
        StorageError: If the database is away.
    """
    jobs = JobsDatabase(database)
    if not jobs.exists:
        raise SchemaError(f"there is no job store at {jobs.name}; the first job makes it")
    with jobs.connect(writable=True) as connection:
        return schema.verify(connection, jobs.name, JOBS)


@contextlib.contextmanager
def _changing(database: Database) -> Iterator[tuple[Connection, str]]:
    jobs = JobsDatabase(database)
    if jobs.is_sqlite:
        with jobs.making() as connection:
            yield connection, jobs.name
        return
    with database.writing() as connection:
        schema.wait_in_turn(connection)
        yield connection, jobs.name
