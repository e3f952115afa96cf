"""A catalog goes from one database into another, whole or not at all."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import published
import pyarrow as pa
import pytest
from sqlalchemy import text

import catalog
from catalog import Catalog, bulk, copying, patterns, people, publishing
from catalog.database import Database
from catalog.declarations import (
    COMPOSITIONS,
    SALIENT,
    PromptPatterns,
    Results,
    Rule,
    TaxonomySpec,
    VectorMeasurement,
)
from catalog.errors import SchemaError, StorageError, UsageError

MakeUrl = Callable[[str, str], str]
ROLE = TaxonomySpec(
    name="role",
    version=1,
    description="d",
    rules=(Rule(metric="induction", threshold=0.4, label="induction", probe="plain"),),
)
JSON = ("params", "versions", "notes", "rules")
AWKWARD = 'of "quotes", commas,\nlines\r\n\\N \\. {braces} ~|~ and é\u2400 🏳️‍🌈'


@pytest.fixture
def make_url(postgresql: str, tmp_path: Path) -> MakeUrl:
    """URLs of new databases by kind and name."""

    def make(kind: str, name: str) -> str:
        if kind == "duckdb":
            return f"duckdb:///{tmp_path / name}.duckdb"
        database = f"c{name}{time.monotonic_ns()}"
        with psycopg.connect(f"user=postgres host={postgresql}", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return f"postgresql+psycopg://postgres@/{database}?host={postgresql}"

    return make


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a filled DuckDB catalog, to be copied from."""
    folder = tmp_path_factory.mktemp("original")
    fill(f"duckdb:///{folder / 'from.duckdb'}", folder)
    return folder


@pytest.fixture
def one(original: Path, tmp_path: Path) -> Catalog:
    """The same with a test's own files."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return catalog.connect(f"duckdb:///{tmp_path / 'from.duckdb'}")


def fill(url: str, folder: Path) -> Catalog:
    """Every table with rows, replaced scores in the history, and texts that CSV stumbles over."""
    one = catalog.connect(url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.1), taxonomies=[ROLE])
    values: published.Values = [
        [0.5, -0.0, None, 1e-310],
        [1 / 3, 2**-1074, 0.1 + 0.2, 1.7e308],
        [0.0, -1.0, 1, 2],
    ]
    again = published.begin(one, "k2")
    published.publish(one, again, values, taxonomies=[ROLE])
    shipped = published.probe("shipped", category="Algorithmic")
    vector = published.metric("signature", is_vector=True)
    lists: Any = [[[0.1, 1e-45, -0.0]] * 4, [None] * 4, [[1 / 3, 2.0, 3e38]] * 4]
    run_id = published.begin(one, "v", metrics=[vector], probes=[shipped])
    results = Results(
        vectors=[VectorMeasurement(metric="signature", probe="shipped", values=lists)],
        compositions=pa.Table.from_pylist([published.composition(value=1 / 3)], COMPOSITIONS),
        salient=pa.Table.from_pylist(
            [
                published.salient(token=word, token_rank=rank, output=AWKWARD)
                for rank, word in enumerate(("", " ", "NULL", AWKWARD, '"', "\\", "1,2"))
            ],
            SALIENT,
        ),
    )
    publishing.publish(one.database, run_id, results, metrics=[vector], notes={"a": AWKWARD})
    store(one, "a b c", {(0, 0): [1.0, 0.25, 0.75, 0.1, 0.2, 0.7], (2, 3): [1, 0, 1, 0, 0, 1]})
    store(one, AWKWARD, {(1, 1): [1.0, 0.5, 0.5]})
    labels = folder / "labels.csv"
    labels.write_text("model,layer,head,taxonomy,label\nm,2,3,verdict,plausible\n")
    people.import_labels(one.database, labels, source="human", reviewer=None)
    publishing.fail(one.database, published.begin(one, "failed"), AWKWARD)
    return one


def store(one: Catalog, prompt: str, found: dict[tuple[int, int], list[float]]) -> int:
    n = {1: 1, 3: 2, 6: 3}[len(next(iter(found.values())))]
    run_id = published.begin(
        one, f"stored {prompt}", metrics=[published.metric(suite="stored_patterns")]
    )
    stored = PromptPatterns(
        prompt=prompt,
        token_ids=tuple(range(n)),
        tokens=("", AWKWARD, "\x00")[:n],
        patterns={
            place: pa.array(numbers, pa.float32()).cast(pa.float16())
            for place, numbers in found.items()
        },
    )
    published.publish_results(
        one, run_id, Results(patterns=[stored]), [published.metric(suite="stored_patterns")]
    )
    return run_id


def everything(one: Catalog) -> dict[str, list[str]]:
    """All rows of all views, and all numbers of all stored patterns."""
    views = (
        "models heads metrics scores score_runs vectors compositions salient_operations "
        "stored_patterns prompt_tokens relation_correlations labels taxonomies runs probes "
        "relations"
    )
    seen = {}
    for view in views.split():
        rows = one.sql(f"SELECT * FROM {view}").rows()
        for row, name in itertools.product(rows, JSON):
            if name in row:  # each driver spells it in its own way
                row[name] = json.loads(row[name] or "null")
        seen[view] = sorted(str([str(value) for value in row.values()]) for row in rows)
    for prompt in ("a b c", AWKWARD):
        stored = patterns.read(one, "m", prompt=prompt)
        seen[prompt] = [str((p.name, p.tokens, p.rows.to_pylist())) for p in stored]
    return seen


@pytest.mark.parametrize("target", ["duckdb", "postgresql"])
@pytest.mark.parametrize("source", ["duckdb", "postgresql"])
def test_a_copy_is_the_same_and_goes_on(
    source: str, target: str, make_url: MakeUrl, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    one = (
        request.getfixturevalue("one")
        if source == "duckdb"
        else fill(make_url(source, "from"), tmp_path)
    )
    told: list[tuple[str, int, int]] = []
    url = make_url(target, "to")
    other = Database(url, lock_timeout=10)
    done = copying.copy(one.database, other, lambda *step: told.append(step))
    assert [table.source for table in done.tables] == [table.target for table in done.tables]
    rows = {table.name: table.source.rows for table in done.tables}
    assert rows["score"] == rows["score_history"] == 12
    assert rows[copying.CONTENTS] == rows["attention_pattern"] == 3
    assert all(rows.values()), "a table without rows proves nothing"
    assert ("score", 12, 12) in told
    there = catalog.connect(url)
    assert everything(there) == everything(one)
    before = {row["run_id"] for row in there.sql("SELECT run_id FROM runs")}
    metrics = [published.metric(), published.metric("entropy")]
    run_id = published.begin(there, "n", metrics=metrics, of=published.model("n", source="n"))
    assert run_id not in before
    published.publish(there, run_id, published.uniform(0.5), metrics=metrics, taxonomies=[ROLE])
    store(there, "a b c", {(0, 1): [1.0, 0.5, 0.5, 0.25, 0.25, 0.5]})
    assert len(patterns.read(there, "m", prompt="a b c")) == 3
    assert len(there.sql("SELECT * FROM scores WHERE model = 'n'")) == 24
    assert patterns.delete(there, "m").patterns == 4
    if one.database.path:
        assert len(patterns.read(one, "m", prompt="a b c")) == 2


def test_checksums_tell_the_last_bit_and_not_the_order(empty_catalog: Catalog) -> None:
    from catalog.checksums import of_table
    from catalog.orm import Score, table

    one = empty_catalog
    published.publish(one, published.begin(one), published.uniform(0.5))

    def checksum() -> str:
        with one.database.reading() as connection:
            columns = [column.name for column in table(Score).columns]
            return of_table(connection, table(Score), columns).digest

    def write(statement: str) -> str:
        with one.database.transaction() as session:
            session.execute(text(statement))
        return checksum()

    before = checksum()
    assert write("UPDATE score SET value = 0.5 WHERE head_id = 1") == before
    changed = {
        write(f"UPDATE score SET value = {value} WHERE head_id = 1")
        for value in (
            "0.5000000000000001",
            "0.0",
            "NULL",  # DuckDB leaves 0.0 where -0.0 shall take its place
            "CAST('-0.0' AS DOUBLE PRECISION)",
            "-0.5",
        )
    }
    assert len(changed | {before}) == 6
    assert write("UPDATE score SET value = 0.5 WHERE head_id = 1") == before


def test_nothing_is_overwritten(make_url: MakeUrl, one: Catalog) -> None:
    for kind in ("duckdb", "postgresql"):
        url = make_url(kind, "to")
        there = catalog.connect(url, create=True)
        people.add_layout(there.database, published.model("mine", revision=None, source=None))
        with pytest.raises(
            UsageError, match=r"holds a catalog already \(its table .* new or empty"
        ):
            copying.copy(one.database, there.database)
        assert [row["model"] for row in there.sql("SELECT model FROM models")] == ["mine"]
    with pytest.raises(UsageError, match="is the source itself"):
        copying.copy(one.database, one.database)
    with pytest.raises(SchemaError, match="there is no catalog"):
        copying.copy(Database(make_url("duckdb", "none"), lock_timeout=1), there.database)


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_an_empty_catalog_is_filled(kind: str, make_url: MakeUrl, one: Catalog) -> None:
    there = catalog.connect(make_url(kind, "to"), create=True)
    copying.copy(one.database, there.database)
    assert everything(there) == everything(one)


def test_runs_under_way_are_closed_in_the_copy_only(make_url: MakeUrl, one: Catalog) -> None:
    run_id = published.begin(one, "under way")
    there = make_url("postgresql", "to")
    assert copying.copy(one.database, Database(there, lock_timeout=10)).closed_runs == 1
    asked = "SELECT status, error FROM runs WHERE run_id = :run_id"
    [row] = catalog.connect(there).sql(asked, run_id=run_id)
    assert row["status"] == "failed"
    assert "under way in" in row["error"]
    assert one.sql(asked, run_id=run_id).rows() == [{"status": "running", "error": None}]


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_what_differs_is_told_and_undone(
    kind: str, make_url: MakeUrl, one: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(kind, "to")
    insert = bulk.insert

    def lose(connection: Any, target: Any, rows: pa.Table) -> None:
        insert(connection, target, rows.slice(1) if target.name == "score" else rows)

    monkeypatch.setattr(bulk, "insert", lose)
    there = Database(url, lock_timeout=10)
    with pytest.raises(StorageError, match=r"was undone: score: 12 rows, \w{16} became 11 rows"):
        copying.copy(one.database, there)
    monkeypatch.undo()
    require_untouched(there)
    copying.copy(one.database, there)
    assert everything(Catalog(there)) == everything(one)


def test_a_broken_side_file_stops_the_copy(make_url: MakeUrl, one: Catalog, tmp_path: Path) -> None:
    [file, *_] = (tmp_path / "from.duckdb.patterns").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    there = Database(make_url("duckdb", "to"), lock_timeout=10)
    with pytest.raises(StorageError, match="is not as the catalog wrote it"):
        copying.copy(one.database, there)
    require_untouched(there)


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
@pytest.mark.parametrize("moment", ["salient_operation", "reading back score"])
def test_a_killed_copy_leaves_nothing_and_can_be_repeated(
    kind: str, moment: str, make_url: MakeUrl, one: Catalog, tmp_path: Path
) -> None:
    source, url = one.database.url.render_as_string(), make_url(kind, "to")
    program = textwrap.dedent(
        f"""
        import os, signal
        from catalog import copying
        from catalog.database import Database
        def tell(name, done, total):
            if name == {moment!r} and (done or not total):
                os.kill(os.getpid(), signal.SIGKILL)
        source, target = (Database(url, lock_timeout=10) for url in ({source!r}, {url!r}))
        copying.copy(source, target, tell)
        """
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    there = Database(url, lock_timeout=10)
    require_untouched(there)
    copying.copy(one.database, there)
    assert everything(Catalog(there)) == everything(one)
    assert not list(tmp_path.glob("*copying*")), "what the killed one left is gone too"


def require_untouched(there: Database) -> None:
    """Not there, or without a row."""
    if there.path is not None:
        assert not there.exists
        folder = there.path.with_name(f"{there.path.name}.patterns")
        assert not folder.exists()
        return
    with there.reading() as connection:
        for name in ("model", "score", "attention_pattern", "pg_largeobject"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar() == 0


def test_the_command_prints_what_it_verified(make_url: MakeUrl, one: Catalog) -> None:
    heads = Path(sys.executable).with_name("heads")
    url = make_url("postgresql", "to")
    done = subprocess.run(
        [heads, "copy", one.database.url.render_as_string(), url, "--format", "csv"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert '"score",12,' in done.stdout
    again = subprocess.run(
        [heads, "copy", one.database.url.render_as_string(), url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 2
    assert "holds a catalog already" in again.stderr
