"""SQL from strangers: attacks on real databases, by what they would have done."""

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import psutil
import psycopg
import published
import pytest

import catalog
from catalog import Catalog, roles, sandbox
from catalog.cage import duck
from catalog.cage.grammar import AMPLIFYING_FUNCTIONS, STABLE_FUNCTIONS
from catalog.cage.limits import Request
from catalog.errors import QueryError, StorageError
from catalog.sandbox import Limits
from catalog.views import VIEWS

SECRET = "pitchblende"  # noqa: S105 - of no account
QUICK = Limits(seconds=2.0)
PATIENCE = 30.0


def filled(url: str) -> Catalog:
    one = catalog.connect(url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has a DuckDB catalog, and files with a secret that no query may tell."""
    made = tmp_path_factory.mktemp("sandbox")
    (made / "secret.csv").write_text(f"a\n{SECRET}\n")
    duckdb.sql(f"SELECT '{SECRET}' AS a").write_parquet(str(made / "secret.parquet"))
    with duckdb.connect(made / "secret.duckdb") as other:
        other.execute(f"CREATE TABLE t AS SELECT '{SECRET}' AS a")
    return made


@pytest.fixture(scope="module")
def on_duckdb(folder: Path) -> Catalog:
    return filled(f"duckdb:///{folder / 'heads.duckdb'}")


@pytest.fixture(scope="module")
def server(postgresql: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The server's owner, who looks at what attackers left."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"user=postgres host={postgresql}", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(
        f"user=postgres host={postgresql} dbname={name}", autocommit=True
    ) as connection:
        yield connection


@pytest.fixture(scope="module")
def on_postgresql(postgresql: str, server: psycopg.Connection[tuple[object, ...]]) -> Catalog:
    """Asked as its superuser: what is refused is not refused for want of a right."""
    return filled(f"postgresql+psycopg://postgres@/{server.info.dbname}?host={postgresql}")


@pytest.fixture(params=["duckdb", "postgresql"])
def asked(request: pytest.FixtureRequest) -> Catalog:
    found: Catalog = request.getfixturevalue(f"on_{request.param}")
    return found


def cages() -> list[psutil.Process]:
    """Processes of the sandbox that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("catalog.cage" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def fails(one: Catalog, query: str, limits: Limits) -> None:
    with pytest.raises(QueryError):
        sandbox.ask(one.database, query, limits)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not holds():
        time.sleep(0.05)
    return holds()


ORDINARY = [
    "SELECT model, layer, head, value FROM scores ORDER BY value DESC, layer, head LIMIT 5",
    "WITH best AS (SELECT layer, max(value) AS v FROM scores GROUP BY layer) SELECT * FROM best",
    "SELECT value, n_layers FROM scores JOIN heads USING (model, layer, head), models",
    "SELECT layer, rank() OVER (PARTITION BY layer ORDER BY value) AS place FROM scores",
    "SELECT layer, count(*) FILTER (WHERE value > 0.1) AS many FROM scores GROUP BY layer",
    "SELECT layer FROM scores UNION SELECT head FROM heads ORDER BY 1",
    "SELECT CASE WHEN value > 0.2 THEN 'high' ELSE 'low' END FROM scores WHERE metric LIKE 'ind%'",
    "SELECT * FROM scores WHERE head IN (SELECT head FROM heads WHERE depth BETWEEN 0 AND 1)",
    "SELECT round(avg(value)) AS mean, stddev(value), lower(string_agg(metric, ';')) FROM scores",
    "SELECT date_trunc('year', started_at), extract(year FROM finished_at), now() FROM runs",
    "SELECT CAST(layer AS varchar) || ':' || substring(metric, 1, 3) FROM scores -- ; DROP",
    "/* a comment; with one more ; */ SELECT 'a;b' AS text",
    "EXPLAIN SELECT * FROM scores",
    "EXPLAIN ANALYZE SELECT * FROM scores",
    "VALUES (1, 'a'), (2, 'b')",
    "SELECT * FROM generate_series(1, 3) AS g",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "SELECT 1;",
]
ORDINARY_ON_DUCKDB = [
    "PIVOT scores ON layer USING avg(value) GROUP BY head",
    "PIVOT scores ON layer IN (0, 1) USING avg(value) GROUP BY head",
    "SELECT * FROM (PIVOT scores ON head USING first(value)) JOIN models USING (model)",
    "UNPIVOT (SELECT layer, head FROM heads) ON layer, head",
    "FROM scores SELECT layer LIMIT 1",
    "SUMMARIZE scores",
    "DESCRIBE heads",
    "SELECT list(value ORDER BY head), unnest(range(2)) FROM scores GROUP BY layer",
]


@pytest.mark.parametrize("query", ORDINARY)
def test_ordinary_queries_are_answered(asked: Catalog, query: str) -> None:
    answer = sandbox.ask(asked.database, query)
    assert len(answer.result)
    assert answer.notice is None


@pytest.mark.parametrize("query", ORDINARY_ON_DUCKDB)
def test_duckdbs_own_forms_are_answered(on_duckdb: Catalog, query: str) -> None:
    assert len(sandbox.ask(on_duckdb.database, query).result)


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_answers_as_it_does_outside(asked: Catalog, view: str) -> None:
    query = f"SELECT * FROM {view}"
    inside = sandbox.ask(asked.database, query).result
    assert inside.columns == list(VIEWS[view].columns)
    assert inside.arrow().schema == asked.sql(query).arrow().schema
    assert sorted(map(str, inside.rows())) == sorted(map(str, asked.sql(query).rows()))


COMMON_ATTACKS = [
    "",
    ";",
    "-- nothing",
    "not SQL",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW scores",
    "SELECT ';'; DELETE FROM score -- ';",
    "SELECT 1 /* ; */ ; DELETE FROM score",
    "DELETE FROM score",
    "INSERT INTO taxonomy SELECT * FROM taxonomy",
    "UPDATE model SET name = 'x'",
    "DROP VIEW models",
    "CREATE TABLE t (x INTEGER)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "TRUNCATE score",
    "BEGIN",
    "EXPLAIN ANALYZE DELETE FROM score",
    "WITH gone AS (DELETE FROM score RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO taxonomy SELECT * FROM taxonomy RETURNING *) SELECT * FROM new",
    "SELECT * INTO t FROM scores",
    "COPY scores TO '{folder}/written.csv'",
    "COPY (SELECT * FROM scores) TO '{folder}/written.csv'",
    "COPY score FROM '{folder}/secret.csv'",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "VACUUM",
    "SELECT * FROM score",
    "SELECT * FROM SCORE",
    'SELECT * FROM "run"',
    "SELECT host FROM run",
    "SELECT * FROM scores, run",
    "SELECT (SELECT host FROM run LIMIT 1)",
    "WITH run AS (SELECT 1 AS host) SELECT * FROM run",
    "SELECT * FROM run, (WITH run AS (SELECT 1) SELECT * FROM run) hidden",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM pg_class",
    "SELECT 1\uff1b DELETE FROM score",
    "SELECT\u00a0* FROM\u202e score",
    "SELECT nextval('model_id_seq')",
    "SELECT pg_sleep(60)",
    "SELECT * FROM scores\0; DELETE FROM score",
    "SELECT '\ud800'",
    "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
    "SELECT '" + "x" * 1_000_000 + "'",
]
DUCKDB_ATTACKS = [
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('{folder}/secret.csv')",
    "SELECT * FROM read_blob('{folder}/secret.csv')",
    "SELECT * FROM read_parquet('{folder}/secret.parquet')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_duckdb('{folder}/secret.duckdb', table_name = 't')",
    "SELECT * FROM parquet_metadata('{folder}/secret.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('{folder}/secret.csv')",
    "SELECT * FROM '{folder}/secret.csv'",
    'SELECT * FROM "{folder}/secret.parquet"',
    "FROM '{folder}/secret.parquet'",
    "PIVOT '{folder}/secret.csv' ON a USING count(*)",
    "PIVOT run ON host USING count(*)",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('run')",
    "SELECT * FROM query_table(['run'])",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM run'))",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_databases()",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_storage_info('run')",
    "CALL duckdb_settings()",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "DESCRIBE run",
    "SUMMARIZE run",
    "SELECT * FROM heads.main.run",
    "SELECT * FROM temp.information_schema.tables",
    "SELECT getenv('HOME')",
    "SELECT current_setting('temp_directory')",
    "SELECT sleep_ms(60000)",
    "SELECT write_log('x')",
    "SELECT * FROM os",
    "SELECT * FROM frame",
    "SELECT * FROM table_in_python",
    "ATTACH '{folder}/secret.duckdb' AS other",
    "ATTACH '{folder}/written.duckdb'",
    "DETACH heads",
    "EXPORT DATABASE '{folder}/written'",
    "IMPORT DATABASE '{folder}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{folder}/secret.parquet'",
    "SET threads = 64",
    "SET memory_limit = '100GB'",
    "SET lock_configuration = false",
    "RESET memory_limit",
    "CREATE SECRET s (TYPE s3)",
    "CHECKPOINT",
    "FORCE CHECKPOINT",
    "EXPLAIN COPY scores TO '{folder}/written.csv'",
]
POSTGRESQL_ATTACKS = [
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_catalog.pg_read_file('/etc/passwd')",
    "SELECT \"pg_read_file\"('/etc/passwd')",
    "SELECT U&\"pg\\005fread_file\"('/etc/passwd')",
    'SELECT * FROM U&"\\0073core"',
    "SELECT * FROM pg_ls_dir('/')",
    "SELECT * FROM ROWS FROM (pg_ls_dir('/'), generate_series(1, 2))",
    "SELECT ('/etc/passwd'::text).pg_read_file",
    "SELECT (60::float8).pg_sleep",
    "SELECT pg_stat_file('/etc/passwd')",
    "COPY scores TO PROGRAM 'touch {folder}/written.csv'",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_create(4711)",
    "SELECT lo_from_bytea(4711, 'x')",
    "SELECT lo_export(4711, '{folder}/written')",
    "SELECT set_config('statement_timeout', '0', false)",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SET statement_timeout = 0",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "RESET ALL",
    "SHOW hba_file",
    "SELECT current_setting('data_directory')",
    "NOTIFY listeners, 'x'",
    "LISTEN listeners",
    "SELECT pg_notify('listeners', 'x')",
    "SELECT pg_sleep_for('1 minute')",
    "SELECT pg_advisory_lock(4711)",
    "SELECT pg_try_advisory_xact_lock(4711)",
    "LOCK TABLE score",
    "SELECT * FROM scores FOR UPDATE",
    "SELECT * FROM models FOR SHARE NOWAIT",
    "SELECT * FROM dblink('host=localhost', 'SELECT 1') AS t(a int)",
    "SELECT query_to_xml('SELECT * FROM run', true, true, '')",
    "SELECT table_to_xml('run', true, true, '')",
    "SELECT database_to_xml(true, true, '')",
    "SELECT xmlparse(document '<a/>')",
    "SELECT ts_stat('SELECT to_tsvector(host) FROM run')",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT 1')",
    "SELECT pg_terminate_backend(1)",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "SELECT pg_get_viewdef('scores')",
    "SELECT 'run'::regclass",
    "SELECT * FROM public.run",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_stat_activity",
    "SELECT * FROM pg_temp.scores",
    "SELECT 1 OPERATOR(public.+) 1",
    "SELECT public.lower('A')",
    "SELECT $1",
    "TABLE run",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL nothing()",
    "DECLARE c CURSOR FOR SELECT 1",
    "EXPLAIN (ANALYZE) CREATE TABLE t AS SELECT 1",
    "SELECT repeat('x', 1000000000)",
    "SELECT lpad('x', 1000000000)",
    "SELECT format('%1000000000s', 'x')",
    "SELECT array_fill(1, ARRAY[100000000])",
]


def state(folder: Path) -> dict[str, str]:
    """All files, less those by which processes take turns."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".lock" not in path.name
    }


@pytest.mark.parametrize("query", [*COMMON_ATTACKS, *DUCKDB_ATTACKS])
def test_attacks_on_duckdb_do_nothing(on_duckdb: Catalog, folder: Path, query: str) -> None:
    table_in_python = frame = duckdb.sql("SELECT 1 AS a").arrow()
    assert table_in_python is frame
    before = state(folder)
    with pytest.raises(QueryError) as caught:
        sandbox.ask(on_duckdb.database, query.replace("{folder}", str(folder)), QUICK)
    assert SECRET not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert state(folder) == before


@pytest.mark.parametrize("query", [*COMMON_ATTACKS, *POSTGRESQL_ATTACKS])
def test_attacks_on_postgresql_do_nothing(
    on_postgresql: Catalog,
    server: psycopg.Connection[tuple[object, ...]],
    folder: Path,
    query: str,
) -> None:
    def left() -> list[tuple[object, ...]]:
        return server.execute(
            """
            SELECT (SELECT count(*) FROM score), (SELECT count(*) FROM taxonomy),
                   (SELECT count(*) FROM pg_largeobject_metadata),
                   (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace),
                   (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
                   (SELECT last_value FROM model_id_seq)
            """
        ).fetchall()

    before, files = left(), state(folder)
    with pytest.raises(QueryError) as caught:
        sandbox.ask(on_postgresql.database, query.replace("{folder}", str(folder)), QUICK)
    assert "root:" not in str(caught.value)
    assert left() == before
    assert state(folder) == files


@pytest.mark.parametrize(
    "query",
    [one for one in DUCKDB_ATTACKS if one.startswith(("SELECT * FROM read", "FROM '", "COPY"))]
    + [
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM frame",
        "COPY scores TO '{folder}/written.csv'",
        "ATTACH '{folder}/secret.duckdb' AS other",
        "EXPORT DATABASE '{folder}/written'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 64",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "DELETE FROM score",
        "CREATE TABLE t (x INTEGER)",
    ],
)
def test_the_connection_holds_without_the_check_of_the_text(
    on_duckdb: Catalog, folder: Path, tmp_path: Path, query: str
) -> None:
    """Each wall stands by itself."""
    assert on_duckdb.database.path
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(on_duckdb.database.path.read_bytes())
    frame = duckdb.sql("SELECT 1 AS a").arrow()
    assert frame
    before = state(folder)
    request = Request(query="", limits=QUICK, views=[], file=str(copy))
    with duck.confined(request) as connection, pytest.raises(duckdb.Error):
        connection.execute(query.replace("{folder}", str(folder))).fetchall()
    assert state(folder) == before


def test_functions_that_do_more_than_compute_are_known_by_name() -> None:
    rows = duckdb.sql(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE has_side_effects"
    ).fetchall()
    harmless = {"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"}
    assert {name for (name,) in rows} - harmless <= duck.REFUSED_FUNCTIONS


def test_functions_that_are_allowed_on_postgresql_write_nothing(
    server: psycopg.Connection[tuple[object, ...]],
) -> None:
    rows = server.execute(
        "SELECT DISTINCT proname FROM pg_proc WHERE proname = ANY(%s) AND provolatile = 'v'",
        [list(STABLE_FUNCTIONS)],
    ).fetchall()
    assert rows == [("random",)]
    assert not STABLE_FUNCTIONS & AMPLIFYING_FUNCTIONS


LONG = {
    "a cross join": (
        "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"
    ),
    "a recursion without end": (
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT (n + 1) % 1000 FROM r) "
        "SELECT count(*) FROM r"
    ),
    "a big sort": (
        "SELECT md5(CAST(g AS varchar)) AS m FROM generate_series(1, 100000000) t(g) "
        "ORDER BY m LIMIT 1"
    ),
    "doubling": (
        "WITH RECURSIVE r(s) AS (SELECT CAST('xxxxxxxx' AS text) UNION ALL SELECT s || s FROM r) "
        "SELECT max(length(s)) FROM r"
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_nothing_holds_the_server(asked: Catalog, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"limit here|string|memory|length"):
        sandbox.ask(asked.database, LONG[name], QUICK)
    assert time.monotonic() - started < PATIENCE
    assert eventually(lambda: len(cages()) <= 2)
    if not asked.database.is_duckdb:
        busy = "SELECT count(*) AS n FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
        with psycopg.connect(
            f"user=postgres host={asked.database.url.query['host']}", autocommit=True
        ) as look:
            assert eventually(
                lambda: look.execute(busy, [LONG[name][:40] + "%"]).fetchone() == (0,)
            )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT repeat('x', 2000000000)",
        "SELECT length(repeat('x', 2000000000))",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)",
    ],
)
def test_memory_ends_the_query_and_not_this_process(on_duckdb: Catalog, query: str) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(QueryError, match=r"512 MB of memory|longer than"):
        sandbox.ask(on_duckdb.database, query, Limits(seconds=20))
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert len(sandbox.ask(on_duckdb.database, "SELECT 1").result) == 1


class TestLimits:
    def test_the_first_rows_are_kept_and_it_is_said(self, asked: Catalog) -> None:
        answer = sandbox.ask(asked.database, "SELECT * FROM scores", Limits(rows=5))
        assert len(answer.result) == 5
        assert answer.notice == "These are the first 5 rows: an answer has at most 5 rows."

    def test_exactly_as_many_rows_are_all(self, asked: Catalog) -> None:
        assert sandbox.ask(asked.database, "SELECT * FROM scores", Limits(rows=12)).notice is None

    def test_bytes(self, asked: Catalog) -> None:
        query = "SELECT md5(CAST(g AS varchar)) FROM generate_series(1, 200000) t(g)"
        answer = sandbox.ask(asked.database, query, Limits(rows=10**6, bytes=2**20))
        assert answer.cut == "bytes"
        assert 0.4 * 2**20 < answer.result.arrow().nbytes <= 2**20
        assert "1 MB" in str(answer.notice)

    def test_time(self, on_duckdb: Catalog) -> None:
        query = (
            "SELECT range FROM range(4096) WHERE range < 2048 OR "
            "(SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range <> b.range) > 9"
        )
        with pytest.raises(QueryError, match="longer than 1 s"):
            sandbox.ask(on_duckdb.database, query, Limits(seconds=1))

    def test_no_more_at_once_than_may(
        self, on_duckdb: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADS_SQL_AT_ONCE", "1")
        slow = threading.Thread(
            target=fails, args=(on_duckdb, LONG["a cross join"], Limits(seconds=5))
        )
        slow.start()
        time.sleep(1)
        with pytest.raises(QueryError, match="ask again in a moment"):
            sandbox.ask(on_duckdb.database, "SELECT 1", Limits(seconds=0.5))
        slow.join()
        assert len(sandbox.ask(on_duckdb.database, "SELECT 1").result) == 1


class TestBesideOthers:
    def test_a_writer_does_not_wait_for_a_query(self, on_duckdb: Catalog) -> None:
        sandbox.ask(on_duckdb.database, "SELECT 1")
        slow = threading.Thread(
            target=fails, args=(on_duckdb, LONG["a cross join"], Limits(seconds=8))
        )
        slow.start()
        time.sleep(1)
        started = time.monotonic()
        with on_duckdb.database.transaction(patience=5):
            pass
        assert slow.is_alive()
        assert time.monotonic() - started < 5
        slow.join()

    def test_readers_of_a_server_are_answered_meanwhile(
        self, on_postgresql: Catalog, server: psycopg.Connection[tuple[object, ...]]
    ) -> None:
        slow = threading.Thread(target=fails, args=(on_postgresql, LONG["a big sort"], QUICK))
        slow.start()
        while slow.is_alive():
            assert server.execute("SELECT count(*) FROM scores").fetchone() == (12,)
            time.sleep(0.1)
        slow.join()

    def test_what_is_published_is_seen_at_once(self, duckdb_url: str, tmp_path: Path) -> None:
        one = filled(duckdb_url)
        count = "SELECT count(*) AS n FROM scores"
        assert sandbox.ask(one.database, count).result.rows() == [{"n": 12}]
        other = published.begin(one, "k2", of=published.model("other"))
        published.publish(one, other, published.uniform(0.5))
        assert sandbox.ask(one.database, count).result.rows() == [{"n": 24}]
        assert tmp_path.exists()

    def test_no_room_for_a_copy(
        self, duckdb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = filled(duckdb_url)
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("HEADS_WORK_DIR", str(tmp_path / "taken"))
        with pytest.raises(StorageError, match="HEADS_WORK_DIR"):
            sandbox.ask(one.database, "SELECT 1")

    def test_a_process_that_was_killed_while_it_waited(self, on_duckdb: Catalog) -> None:
        sandbox.ask(on_duckdb.database, "SELECT 1")
        for process in cages():
            process.kill()
            process.wait()
        assert len(sandbox.ask(on_duckdb.database, "SELECT 1").result) == 1


def test_a_server_is_asked_as_its_reader(
    on_postgresql: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    roles.let_read(on_postgresql.database, role, "between us")
    monkeypatch.setenv("HEADS_READER_ROLE", role)
    monkeypatch.setenv("HEADS_READER_PASSWORD", "between us")
    url = on_postgresql.database.url.render_as_string(hide_password=False)
    reading = catalog.connect(url).database
    assert sandbox.ask(reading, "SELECT current_user AS who").result.rows() == [{"who": role}]
    assert len(sandbox.ask(reading, "SELECT * FROM scores").result) == 12
