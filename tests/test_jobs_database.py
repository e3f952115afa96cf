"""Where jobs lie: a SQLite file beside DuckDB or PostgreSQL, made once, and away at times."""

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from jobs import in_processes, spec
from sqlalchemy import text

from catalog import Catalog, schema
from catalog.database import Database
from catalog.errors import SchemaError, StorageError
from catalog.jobs import JobStore, open_store
from catalog.jobs import schema as jobs_schema
from catalog.jobs.connections import JobsDatabase


def test_the_file_is_made_by_whoever_is_first(duckdb_url: str, tmp_path: Path) -> None:
    def submit(one: JobStore, _place: int) -> bool:
        return one.submit(spec()).is_new

    assert sorted(in_processes(duckdb_url, submit, 8)) == [False] * 7 + [True]
    assert jobs_schema.check(Database(duckdb_url, lock_timeout=1)) == schema.head(schema.JOBS)
    with sqlite3.connect(tmp_path / "heads.duckdb.jobs") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_process_that_dies_while_it_makes_the_file_hinders_nobody(
    duckdb_url: str, tmp_path: Path
) -> None:
    program = textwrap.dedent(
        f"""
        import os, signal
        from alembic import op
        from catalog.database import Database
        from catalog.jobs import open_store
        create = op.create_index
        def die(*given, **named):
            create(*given, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        op.create_index = die
        open_store(Database({duckdb_url!r}, lock_timeout=1))
        """
    )
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -signal.SIGKILL
    database = Database(duckdb_url, lock_timeout=1)
    assert not JobsDatabase(database).exists
    assert open_store(database).list() == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "heads.duckdb.jobs",
        "heads.duckdb.jobs.lock",
    }


def test_nobody_sees_a_file_before_it_is_whole(duckdb_url: str) -> None:
    """Who looks without making one, as the page does, finds none or all of it."""
    database = Database(duckdb_url, lock_timeout=1)
    upgrade = multiprocessing.get_context("fork").Process(target=open_store, args=(database,))
    upgrade.start()
    looked = 0
    while not JobsDatabase(database).exists:
        looked += 1
        assert upgrade.exitcode in {None, 0}
    assert jobs_schema.check(database) == schema.head(schema.JOBS)
    upgrade.join(60)
    assert upgrade.exitcode == 0
    assert looked


def test_a_server_is_upgraded_by_one_of_many(new_postgresql_url: str) -> None:
    database = Database(new_postgresql_url, lock_timeout=1)
    with pytest.raises(SchemaError, match=r"holds no job store; make one with `heads db up"):
        open_store(database)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=schema.upgrade, args=(database,)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert schema.check(database) == schema.head()
    assert jobs_schema.check(database) == schema.head(schema.JOBS)


def test_jobs_go_back_and_forth_and_leave_the_catalog_alone(empty_catalog: Catalog) -> None:
    database, head = empty_catalog.database, schema.head(schema.JOBS)
    open_store(database).submit(spec())
    assert jobs_schema.downgrade(database, "base") == (head, None)
    assert schema.check(database) == schema.head()
    assert jobs_schema.upgrade(database) == (None, head)
    assert jobs_schema.check(database) == head
    assert open_store(database).list() == []
    with pytest.raises(SchemaError, match="cannot go back to '7777'"):
        jobs_schema.downgrade(database, "7777")


def test_a_store_that_is_not_as_this_release_has_it_is_refused(empty_catalog: Catalog) -> None:
    database = empty_catalog.database
    open_store(database)

    def change(statement: str) -> None:
        with JobsDatabase(database).connect(writable=True) as connection:
            connection.execute(text(statement))
            connection.commit()

    change("ALTER TABLE job ADD COLUMN extra INTEGER")
    with pytest.raises(SchemaError, match=r"not as declared: job\.extra"):
        jobs_schema.check(database)
    change("UPDATE jobs_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="9999, which this release does not know"):
        open_store(database)


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://postgres@/x?host={tmp_path}", lock_timeout=1)
    with pytest.raises(StorageError, match=r"the job store .* cannot be used now"):
        open_store(away)
    (tmp_path / "heads.duckdb.jobs").write_bytes(b"no database " * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        open_store(Database(f"duckdb:///{tmp_path / 'heads.duckdb'}", lock_timeout=1))


def test_a_connection_cut_in_the_middle_is_said_to_be(new_postgresql_url: str) -> None:
    database = Database(new_postgresql_url, lock_timeout=1)
    schema.upgrade(database)
    store = open_store(database)
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def cut() -> None:
        with store._writing() as session, database.writing() as other:
            assert session.execute(text("SELECT 1")).all()
            assert other.execute(kill).all() == [(True,)]

    with pytest.raises(StorageError, match="cannot be used now"):
        cut()
    assert store.list() == []
