"""Readers of a catalog on a server: they see what is shown, and change none of it."""

import re
from pathlib import Path

import psycopg
import published
import pyarrow as pa
import pytest
from sqlalchemy.exc import DBAPIError
from streamlit.testing.v1 import AppTest

import catalog
from catalog import Catalog, patterns, publishing, queries, roles, schema
from catalog.database import Database, Reader
from catalog.declarations import PromptPatterns, Results
from catalog.errors import QueryError, StorageError, UsageError
from catalog.jobs import open_store

VIEWS = (
    "models",
    "heads",
    "metrics",
    "scores",
    "score_runs",
    "vectors",
    "compositions",
    "salient_operations",
    "stored_patterns",
    "prompt_tokens",
    "relation_correlations",
    "labels",
    "taxonomies",
    "runs",
    "probes",
    "relations",
)
UNSET = {"options": "-c default_transaction_read_only=off"}
"""What a role may do to its own settings."""


def _as(url: str, role: str) -> str:
    return url.replace("//postgres@", f"//{role}@")


def _rows(url: str, statement: str, **options: str) -> list[tuple[object, ...]]:
    url = url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, **options) as connection:  # type: ignore[arg-type]
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


@pytest.fixture
def url(new_postgresql_url: str) -> str:
    """A catalog with scores and a stored pattern."""
    one = catalog.connect(new_postgresql_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    metrics = [published.metric(suite="stored_patterns")]
    run_id = published.begin(one, "p", metrics=metrics)
    stored = PromptPatterns(
        prompt="a b",
        token_ids=(1, 2),
        tokens=("a", " b"),
        patterns={(0, 1): pa.array([1.0, 0.5, 0.5], pa.float16())},
    )
    published.publish_results(one, run_id, Results(patterns=[stored]), metrics)
    return new_postgresql_url


@pytest.fixture
def role(url: str) -> str:
    """The name of a reader made by a superuser."""
    database = Database(url, lock_timeout=1)
    name = f"reader_{database.url.database}"
    assert roles.let_read(database, name) == roles.Reader(is_new=True, is_hardened=True)
    return name


@pytest.fixture
def owned_url(new_postgresql_url: str) -> str:
    """A catalog whose owner is no superuser, and may make roles."""
    name = Database(new_postgresql_url, lock_timeout=1).url.database
    owner = f"owner_{name}"
    _rows(new_postgresql_url, f"CREATE ROLE {owner} LOGIN CREATEROLE")
    _rows(new_postgresql_url, f"ALTER DATABASE {name} OWNER TO {owner}")
    owned = _as(new_postgresql_url, owner)
    one = catalog.connect(owned, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    return owned


@pytest.mark.parametrize("how", ["by its own URL", "by the settings"])
def test_all_our_reading_works_under_the_role(
    url: str, role: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "by the settings":
        monkeypatch.setenv("HEADS_READER_ROLE", role)
    one = catalog.connect(url if how == "by the settings" else _as(url, role))
    assert one.sql("SELECT current_user AS who").rows() == [{"who": role}]
    for view in VIEWS:
        one.sql(f"SELECT * FROM {view}")
    assert patterns.read(one, "m")[0].rows.to_pylist() == [[1.0], [0.5, 0.5]]
    assert len(patterns.stored(one, "m")) == 1
    assert patterns.size(one).rows()[1]["bytes"] > 0
    assert len(queries.models(one)) == 1
    assert len(publishing.published_runs(one.database, "m", ["k1/plain"])) == 1
    assert publishing.running(one.database) == []
    assert open_store(one.database).list() == []


def test_pages_work_under_the_role(url: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_DATABASE_URL", _as(url, role))
    ui = Path(__file__).parents[1] / "ui"
    pages = sorted((ui / "site").glob("[a-z]*.py"))
    assert pages
    for one in pages:
        page = AppTest.from_file(str(ui / "app.py"), default_timeout=60)
        page.switch_page(f"site/{one.name}")
        page.query_params.update({"model": "m", "head": "L0H0"} if one.stem == "head" else {})
        page.run()
        assert not page.exception
        assert not [error.value for error in page.error], one.stem


def test_a_process_with_a_reader_still_writes_as_itself(url: str, role: str) -> None:
    one = Catalog(Database(url, lock_timeout=1, reader=Reader(role)))
    published.publish(one, published.begin(one, "k2"), published.uniform(0.5))
    assert one.sql("SELECT DISTINCT value, current_user AS who FROM scores").rows() == [
        {"value": 0.5, "who": role}
    ]
    with pytest.raises(DBAPIError), one.database.reading() as connection:
        connection.exec_driver_sql("DELETE FROM model")


def test_a_reader_reads_what_is_named_and_writes_nothing(url: str, role: str) -> None:
    _rows(url, "CREATE TABLE mine (x int)")
    reader = _as(url, role)
    for table in ("score_history", "label", "head_label", "token_text", "mine"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            _rows(reader, f"SELECT * FROM {table}")
    for table in ("model", "job", "attention_pattern", "alembic_version"):
        _rows(reader, f"SELECT * FROM {table}")
        for statement in (f"DELETE FROM {table}", f"DROP TABLE {table}", f"TRUNCATE {table}"):
            with pytest.raises(psycopg.errors.Error):
                _rows(reader, statement)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                _rows(reader, statement, **UNSET)
    assert _rows(reader, "SHOW default_transaction_read_only") == [("on",)]
    assert _rows(reader, "SHOW statement_timeout") == [("1min",)]
    assert _rows(reader, "SHOW temp_file_limit") == [("4GB",)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "COPY model TO '/tmp/model'",
        "COPY model TO PROGRAM 'cat'",
        "SELECT set_config('statement_timeout', '0', false)",
        "SELECT pg_sleep(1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_xact_lock(1)",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_notify('a', 'b')",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT query_to_xml('SELECT 1', true, true, '')",
        "SELECT setval('model_id_seq', 1)",
        "SET temp_file_limit = -1",
        "SELECT rolpassword FROM pg_authid",
    ],
)
def test_what_could_hinder_others_is_not_a_readers(url: str, role: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _rows(_as(url, role), statement, **UNSET)
    with pytest.raises(QueryError):
        Catalog(Database(_as(url, role), lock_timeout=1)).sql(statement)


def test_an_owner_that_is_no_superuser_makes_a_reader(owned_url: str) -> None:
    database = Database(owned_url, lock_timeout=1)
    role = f"reader_{database.url.database}"
    assert roles.let_read(database, role) == roles.Reader(is_new=True, is_hardened=False)
    assert not roles.let_read(database, role).is_new
    reader = owned_url.replace(str(database.url.username), role)
    assert len(catalog.connect(reader).sql("SELECT * FROM scores")) == 12
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _rows(reader, "CREATE TEMPORARY TABLE t (x int)", **UNSET)
    superuser = owned_url.replace(str(database.url.username), "postgres")
    assert roles.let_read(Database(superuser, lock_timeout=1), role).is_hardened
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _rows(reader, "SELECT pg_sleep(1)")
    one = catalog.connect(owned_url)
    published.publish(one, published.begin(one, "k2"), published.uniform(0.5))
    words = published.begin(one, "w", metrics=[published.metric(suite="salient")])
    published.publish_results(one, words, published.salients(published.salient()))
    assert schema.upgrade(database) == (schema.head(), schema.head())


def test_a_migration_leaves_readers_theirs(url: str, role: str) -> None:
    database = Database(url, lock_timeout=1)
    schema.downgrade(database, "0004")
    schema.upgrade(database)
    with pytest.raises(QueryError, match="permission denied"):
        Catalog(Database(_as(url, role), lock_timeout=1)).sql("SELECT * FROM stored_patterns")
    assert roles.renew(database) == [role]
    for view in VIEWS:
        Catalog(Database(_as(url, role), lock_timeout=1)).sql(f"SELECT * FROM {view}")


def test_a_reader_s_password_is_kept_as_its_hash_and_changes_when_told(url: str) -> None:
    database = Database(url, lock_timeout=1)
    role = f"reader_{database.url.database}"

    def kept() -> object:
        return _rows(url, f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'")[0][0]

    assert roles.let_read(database, role, "one").is_new
    first = kept()
    assert re.match(r"SCRAM-SHA-256\$", str(first))
    assert not roles.let_read(database, role).is_new
    assert kept() == first
    assert not roles.let_read(database, role, "two").is_new
    assert kept() != first
    assert "two" not in repr(Reader(role, "two"))


def test_names_are_names_and_no_sql(url: str) -> None:
    role = 'x" SUPERUSER; DROP TABLE score; --%s{}'
    assert roles.let_read(Database(url, lock_timeout=1), role).is_new
    assert not roles.let_read(Database(url, lock_timeout=1), role).is_new
    assert _rows(url, "SELECT rolsuper FROM pg_roles WHERE rolname LIKE 'x\" S%'") == [(False,)]
    assert _rows(url, "SELECT count(*) FROM scores") == [(12,)]
    quoted = '"' + role.replace('"', '""') + '"'
    _rows(url, f"DROP OWNED BY {quoted}")
    _rows(url, f"DROP ROLE {quoted}")


def test_what_cannot_be_a_reader_is_refused(url: str, role: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a file"):
        roles.let_read(Database(f"duckdb:///{tmp_path / 'x.duckdb'}", lock_timeout=1), "reader")
    database = Database(url, lock_timeout=1)
    with pytest.raises(UsageError, match="the role that writes"):
        roles.let_read(database, "postgres")
    _rows(url, f"GRANT pg_read_server_files TO {role}")
    with pytest.raises(UsageError, match="is more than a reader"):
        roles.let_read(database, role)
    _rows(url, f"REVOKE pg_read_server_files FROM {role}")
    with pytest.raises(StorageError, match="may make roles"):
        roles.let_read(Database(_as(url, role), lock_timeout=1), "other")
