"""Vectors, compositions and salient operations: published with a run, found by head and token."""

import csv
import io
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import commands
import pyarrow as pa
import pytest
from published import (
    begin,
    composition,
    compositions,
    metric,
    model,
    probe,
    publish,
    publish_results,
    salient,
    salients,
    uniform,
)

from catalog import Catalog, publishing, queries
from catalog.declarations import SALIENT, Measurement, Results, VectorMeasurement
from catalog.errors import UsageError
from catalog.rows import Keys

SPECTRUM = metric("spectrum", suite="weights", is_vector=True)
NORM = metric("norm", suite="weights")
WEIGHTS = probe("weights")
VIEWS = ("scores", "vectors", "compositions", "salient_operations")
HOSTILE = [
    " Paris",
    "",
    " ",
    "\n\n",
    "\r\t\x1b[31m\x7f",
    "\\.",
    "\\N",
    "NULL",
    "{1,2}",
    'a,"b"\'c;--',
    "%s :text",
    "\ufffd\u2028\u200b\U0001f600",
]


def everything(value: float = 0.5) -> Results:
    """All kinds of results of a model with 3 layers of 4 heads."""
    return Results(
        measurements=[Measurement(metric="norm", probe="weights", values=uniform(value))],
        vectors=[spectra([[value, 0.25]] * 12)],
        compositions=compositions(composition(value=value)).compositions,
        salient=salients(salient(logit=value)).salient,
    )


def spectra(lists: Sequence[Sequence[float] | None]) -> VectorMeasurement:
    rows = [lists[start : start + 4] for start in (0, 4, 8)]
    return VectorMeasurement(metric="spectrum", probe="weights", values=rows)


def run_weights(one: Catalog, key: str = "k", **facts: Any) -> int:
    """Begin a run that may publish everything."""
    of = model(**facts)
    return begin(one, key, of=of, metrics=[NORM, SPECTRUM], probes=[WEIGHTS])


def run_salient(one: Catalog, *rows: dict[str, Any], name: str = "m") -> int:
    run_id = begin(one, name, of=model(name, source=name), probes=[probe("vocabulary")])
    publish_results(one, run_id, salients(*rows))
    return run_id


def rows_of(one: Catalog, view: str) -> list[dict[str, Any]]:
    return one.sql(f"SELECT * FROM {view}").rows()


def test_details_become_visible_with_the_scores(empty_catalog: Catalog) -> None:
    run_id = run_weights(empty_catalog)
    assert [rows_of(empty_catalog, view) for view in (*VIEWS, "metrics")] == [[]] * 5
    publish_results(empty_catalog, run_id, everything(), [NORM, SPECTRUM])
    assert len(rows_of(empty_catalog, "scores")) == 12
    vectors = empty_catalog.sql("SELECT * FROM vectors ORDER BY layer, head")
    assert vectors.arrow().schema.field("numbers").type == pa.list_(pa.float32())
    assert vectors.rows()[5] == {
        "model": "m",
        "layer": 1,
        "head": 1,
        "metric": "spectrum",
        "probe": "weights",
        "numbers": [0.5, 0.25],
        "run_id": run_id,
    }
    assert rows_of(empty_catalog, "compositions") == [
        {
            "model": "m",
            "layer": 1,
            "head": 0,
            "from_layer": 0,
            "from_head": 0,
            "kind": "query",
            "value": 0.5,
            "run_id": run_id,
        }
    ]
    assert rows_of(empty_catalog, "salient_operations") == [
        {
            "model": "m",
            "layer": 0,
            "head": 0,
            "token": " France",
            "token_rank": 0,
            "norm": 2.5,
            "direction": "promoted",
            "output": " Paris",
            "output_rank": 0,
            "logit": 0.5,
            "run_id": run_id,
            "token_id": 10,
            "output_id": 20,
        }
    ]
    said = empty_catalog.sql("SELECT metric, suite, is_vector FROM metrics ORDER BY metric").rows()
    assert said == [
        {"metric": "norm", "suite": "weights", "is_vector": False},
        {"metric": "spectrum", "suite": "weights", "is_vector": True},
    ]


def test_a_vector_metric_has_no_partition_of_scores(new_postgresql_url: str) -> None:
    import catalog

    one = catalog.connect(new_postgresql_url, create=True)
    run_weights(one)
    found = one.sql("SELECT tablename FROM pg_tables WHERE tablename LIKE 'score_metric_%'")
    assert [row["tablename"] for row in found] == ["score_metric_1"]


def test_numbers_of_vectors_come_back_as_they_were_to_single_precision(
    empty_catalog: Catalog,
) -> None:
    values = [0.1, -1e-38, 3.0e38, 0.0, 1 / 3, 16_777_217.0]
    lists: list[Sequence[float] | None] = [values, None, *[[0.0] * 6] * 10]
    run_id = run_weights(empty_catalog)
    publish_results(empty_catalog, run_id, Results(vectors=[spectra(lists)]), [SPECTRUM])
    found = empty_catalog.sql("SELECT numbers FROM vectors ORDER BY layer, head").arrow()
    assert found["numbers"][0].as_py() == pa.array(values, pa.float32()).to_pylist()
    assert found["numbers"][1].as_py() is None


def test_texts_of_tokens_come_back_as_they_were(empty_catalog: Catalog) -> None:
    rows = [
        salient(token_rank=rank, token=text, output=text[::-1], token_id=rank)
        for rank, text in enumerate(HOSTILE)
    ]
    run_salient(empty_catalog, *rows)
    found = empty_catalog.sql("SELECT token, output FROM salient_operations ORDER BY token_rank")
    assert [row["token"] for row in found] == HOSTILE
    assert [row["output"] for row in found] == [text[::-1] for text in HOSTILE]
    for text in HOSTILE:
        assert len(queries.reading(empty_catalog, text)) == 1
        assert len(queries.writing(empty_catalog, text[::-1])) == 1


def test_texts_that_no_database_takes_are_kept_in_another_form(empty_catalog: Catalog) -> None:
    long = "\u00e9" * 3000
    run_salient(
        empty_catalog,
        salient(token="a\x00b", output=long),
        salient(token="a\u2400b", output=long + "x", head=1, token_id=11),
    )
    for text in ("a\x00b", "a\u2400b"):
        found = queries.reading(empty_catalog, text).rows()
        assert [(row["name"], row["output"]) for row in found] == [
            ("L0H0", long[:500]),
            ("L0H1", long[:500]),
        ]
    assert len(queries.writing(empty_catalog, long)) == 2


def test_many_rows_are_all_there(empty_catalog: Catalog) -> None:
    n = 120_000
    columns = {name: [value] * n for name, value in salient().items()}
    columns["token_rank"] = list(range(n))
    columns["token"] = [f" {rank % 1000}" for rank in range(n)]
    run_id = begin(empty_catalog, probes=[probe("vocabulary")])
    publish_results(empty_catalog, run_id, Results(salient=pa.table(columns, schema=SALIENT)))
    counted = "SELECT count(*) AS n, count(DISTINCT token) AS tokens FROM salient_operations"
    assert empty_catalog.sql(counted).rows() == [{"n": n, "tokens": 1000}]


def test_nothing_found_is_published_as_nothing(empty_catalog: Catalog) -> None:
    run_id = run_salient(empty_catalog)
    assert rows_of(empty_catalog, "salient_operations") == []
    assert empty_catalog.sql("SELECT status FROM runs WHERE run_id = :r", r=run_id).rows() == [
        {"status": "succeeded"}
    ]


def test_a_run_takes_the_details_of_the_one_before_away(empty_catalog: Catalog) -> None:
    first = run_weights(empty_catalog, "a")
    publish_results(empty_catalog, first, everything(0.5), [NORM, SPECTRUM])
    other_suite = run_salient(empty_catalog, salient(layer=2))
    other_model = run_weights(empty_catalog, "b", name="n", source="n")
    publish_results(empty_catalog, other_model, everything(0.5), [NORM, SPECTRUM])
    second = run_weights(empty_catalog, "c", revision="r2")
    publish_results(empty_catalog, second, everything(0.75), [NORM, SPECTRUM])
    for view in VIEWS:
        found = empty_catalog.sql(f"SELECT DISTINCT run_id FROM {view} ORDER BY run_id").rows()
        runs = [row["run_id"] for row in found]
        kept = [other_suite] if view == "salient_operations" else []
        assert runs == sorted([*kept, other_model, second]), view
    with empty_catalog.database.reading() as connection:
        for table in ("head_vector", "composition", "salient_operation"):
            left = connection.exec_driver_sql(
                f"SELECT count(*) FROM {table} WHERE run_id = {first}"
            ).scalar_one()
            assert left == 0, table
    replaced = empty_catalog.sql("SELECT run_id FROM score_runs WHERE NOT is_published")
    assert {row["run_id"] for row in replaced} == {first}


def vectors(lists: Sequence[Sequence[float] | None]) -> Results:
    return Results(vectors=[spectra(lists)])


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (salients(salient(direction="up")), "expected as direction promoted or suppressed, got"),
        (salients(salient(layer=3)), "expected a layer below 3 and a head below 4, got"),
        (salients(salient(head=-1)), "'head': -1"),
        (salients(salient(), salient(logit=float("nan"))), "expected a finite logit, got"),
        (salients(salient(token=None)), "expected a token, got"),
        (Results(salient=pa.table({"layer": [0]})), "expected the columns layer, head, token_rank"),
        (compositions(composition(kind="output")), "expected as kind query or key or value, got"),
        (compositions(composition(from_head=4)), "expected a from_layer below 3 and a from_head"),
        (compositions(composition(from_layer=1)), "expected a from_layer before the layer, got"),
        (compositions(composition(from_layer=2)), "'from_layer': 2"),
        (compositions(composition(value=float("inf"))), "expected a finite value, got"),
        (vectors([[1.0]] * 11 + [[1.0, 2.0]]), "has 1 numbers for L0H0, and 2 for another"),
        (vectors([[1.0]] * 5 + [[float("nan")]] * 7), "has the number nan for L1H1"),
        (vectors([None] * 11 + [[1e300]]), "has the number inf for L2H3"),
        (vectors([[1.0]] * 8), "expected 3 layers of 4 heads"),
        (
            Results(vectors=[replace(spectra([[1.0]] * 12), metric="norm")]),
            "norm on weights is not what the run was begun for: spectrum on weights",
        ),
        (
            Results(measurements=[Measurement(metric="norm", probe="x", values=uniform(1.0))]),
            "norm on x is not what the run was begun for",
        ),
    ],
)
def test_what_is_not_as_declared_is_refused(results: Results, reason: str) -> None:
    keys = Keys(
        run_id=1,
        n_layers=3,
        n_heads=4,
        heads=pa.array(range(12), pa.int32()),
        scores={"norm": 1},
        vectors={"spectrum": 2},
        probes={"weights": 1},
    )
    with pytest.raises(ValueError, match=reason):
        publishing._rows(results, keys)


def test_one_bad_row_refuses_a_run_as_a_whole(empty_catalog: Catalog) -> None:
    first = run_weights(empty_catalog, "a")
    publish_results(empty_catalog, first, everything(), [NORM, SPECTRUM])
    before = {view: rows_of(empty_catalog, view) for view in VIEWS}
    second = run_weights(empty_catalog, "b")
    bad = replace(everything(0.75), salient=salients(salient(logit=float("nan"))).salient)
    with pytest.raises(ValueError, match="expected a finite logit"):
        publish_results(empty_catalog, second, bad, [NORM, SPECTRUM])
    assert {view: rows_of(empty_catalog, view) for view in VIEWS} == before


def test_details_without_a_probe_need_a_run_on_one(empty_catalog: Catalog) -> None:
    run_id = begin(empty_catalog, probes=[probe("plain"), probe("mine")])
    with pytest.raises(ValueError, match="need a run on one probe, and this one has"):
        publish_results(empty_catalog, run_id, salients(salient()))


def test_a_run_that_dies_while_it_publishes_leaves_nothing(
    empty_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_weights(empty_catalog, "a")
    publish_results(empty_catalog, first, everything(0.5), [NORM, SPECTRUM])
    before = {view: rows_of(empty_catalog, view) for view in VIEWS}

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    second = run_weights(empty_catalog, "b")
    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_make_current", die)
        with pytest.raises(KeyboardInterrupt):
            publish_results(empty_catalog, second, everything(0.75), [NORM, SPECTRUM])
    assert {view: rows_of(empty_catalog, view) for view in VIEWS} == before
    publish_results(empty_catalog, second, everything(0.75), [NORM, SPECTRUM])
    for view in VIEWS:
        assert {row["run_id"] for row in rows_of(empty_catalog, view)} == {second}


def test_readers_never_see_a_mixture(empty_catalog: Catalog) -> None:
    first = run_weights(empty_catalog, "first")
    publish_results(empty_catalog, first, everything(), [NORM, SPECTRUM])

    def replace_it() -> None:
        for key in "abcde":
            run_id = run_weights(empty_catalog, key)
            publish_results(empty_catalog, run_id, everything(), [NORM, SPECTRUM])

    query = " UNION ALL ".join(f"SELECT '{view}' AS seen, run_id FROM {view}" for view in VIEWS)
    writer = threading.Thread(target=replace_it)
    writer.start()
    while writer.is_alive():
        rows = empty_catalog.sql(query).rows()
        assert len({row["run_id"] for row in rows}) == 1
        assert {row["seen"] for row in rows} == set(VIEWS)
    writer.join()


@pytest.fixture
def spoken(empty_catalog: Catalog) -> Catalog:
    """Two models whose heads write ' Paris', and one without salient operations."""
    run_salient(
        empty_catalog,
        salient(token_rank=1, token=" Seine", token_id=11, output_rank=1, logit=3.0),
        salient(token_rank=0, logit=7.0),
        salient(token_rank=0, output_rank=1, output=" Lyon", output_id=21, logit=6.0),
        salient(direction="suppressed", output=" Berlin", output_id=22, logit=-2.0),
        salient(layer=1, head=2, output_rank=3, norm=9.0, logit=1.0),
        name="one",
    )
    run_salient(
        empty_catalog,
        salient(layer=2, token="Eiffel", token_rank=4, logit=9.0),
        salient(layer=2, head=1, direction="suppressed", token="Berlin", logit=-4.0),
        name="two",
    )
    bare = begin(empty_catalog, "bare", of=model("bare", source="bare"))
    publish(empty_catalog, bare, uniform(0.5))
    return empty_catalog


def places(found: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{row['model']} {row['name']}" for row in found]


def test_who_writes_a_token_best_first_one_row_a_head(spoken: Catalog) -> None:
    found = queries.writing(spoken, " Paris").rows()
    assert places(found) == ["one L0H0", "two L2H0", "one L1H2"]
    assert found[0] == {
        "model": "one",
        "layer": 0,
        "head": 0,
        "name": "L0H0",
        "output_rank": 0,
        "token": " France",
        "token_rank": 0,
        "norm": 2.5,
        "logit": 7.0,
        "tokens": 2,
    }
    assert places(queries.writing(spoken, " Paris", limit=1).rows()) == ["one L0H0"]
    assert places(queries.writing(spoken, " Paris", model="two").rows()) == ["two L2H0"]
    against = queries.writing(spoken, " Paris", suppressed=True).rows()
    assert (places(against), against[0]["logit"]) == (["two L2H1"], -4.0)


def test_who_reads_a_token_and_what_for(spoken: Catalog) -> None:
    found = queries.reading(spoken, " France").rows()
    assert [(row["name"], row["token_rank"], row["output"]) for row in found] == [
        ("L0H0", 0, " Paris")
    ]
    assert found[0].keys() == {
        *("model", "layer", "head", "name", "token_rank", "norm", "output", "logit")
    }
    assert places(queries.reading(spoken, "Eiffel", model="two").rows()) == ["two L2H0"]


def test_a_heads_salient_operations_in_order(spoken: Catalog) -> None:
    found = queries.salient(spoken, "one", 0, 0).rows()
    assert [
        (row["token_rank"], row["direction"], row["output_rank"], row["output"]) for row in found
    ] == [
        (0, "promoted", 0, " Paris"),
        (0, "promoted", 1, " Lyon"),
        (0, "suppressed", 0, " Berlin"),
        (1, "promoted", 1, " Paris"),
    ]
    assert len(queries.salient(spoken, "one", 2, 3)) == 0


def test_what_is_not_there_is_explained(spoken: Catalog) -> None:
    with pytest.raises(UsageError, match=r"promotes 'Paris'; did you mean ' Paris', with a space"):
        queries.writing(spoken, "Paris")
    with pytest.raises(UsageError, match=r"amplifies ' Eiffel'; did you mean 'Eiffel', without"):
        queries.reading(spoken, " Eiffel")
    with pytest.raises(UsageError, match=r"no head of two promotes ' Lyon'$"):
        queries.writing(spoken, " Lyon", model="two")
    with pytest.raises(UsageError, match=r"no head suppresses ' Lyon'$"):
        queries.writing(spoken, " Lyon", suppressed=True)
    with pytest.raises(UsageError, match=r"nothing in the view .*ingest MODEL --suite sal"):
        queries.salient(spoken, "bare", 0, 0)
    with pytest.raises(UsageError, match="bare has nothing in the view"):
        queries.reading(spoken, " France", model="bare")
    with pytest.raises(UsageError, match="no model 'three'"):
        queries.writing(spoken, " Paris", model="three")
    with pytest.raises(UsageError, match="3 layers of 4 heads, counted from 0, and no L3H0"):
        queries.salient(spoken, "one", 3, 0)
    for limit in (0, 10**30):
        with pytest.raises(UsageError, match="expected 1 to 1,000,000"):
            queries.writing(spoken, " Paris", limit=limit)
        with pytest.raises(UsageError, match="expected 1 to 1,000,000"):
            queries.top(spoken, "induction", probe="plain", model=None, limit=limit, lowest=False)


def test_an_empty_catalog_says_what_to_do(empty_catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="the catalog has nothing in the view"):
        queries.writing(empty_catalog, " Paris")


def test_what_feeds_a_head_and_what_it_feeds(spoken: Catalog) -> None:
    run_id = run_weights(spoken, name="one", source="one")
    results = compositions(
        composition(value=0.25),
        composition(kind="value", from_head=3, value=0.75),
        composition(kind="key", layer=2, head=1, from_layer=1, value=0.5),
        composition(kind="key", layer=2, head=1, value=0.125),
    )
    publish_results(spoken, run_id, results)
    found = queries.compositions(spoken, "one", 1, 0).rows()
    assert [tuple(row.values()) for row in found] == [
        ("reads", "value", 0, 3, "L0H3", 0.75),
        ("reads", "query", 0, 0, "L0H0", 0.25),
        ("feeds", "key", 2, 1, "L2H1", 0.5),
    ]
    assert len(queries.compositions(spoken, "one", 1, 3)) == 0
    with pytest.raises(UsageError, match=r"two has nothing in the view .*--suite weights"):
        queries.compositions(spoken, "two", 1, 0)


def test_a_list_is_no_score_to_rank_heads_by(empty_catalog: Catalog) -> None:
    publish_results(empty_catalog, run_weights(empty_catalog), everything(), [NORM, SPECTRUM])
    with pytest.raises(UsageError, match=r"spectrum is a list of numbers .* the view `vectors`"):
        queries.probes_of(empty_catalog, "spectrum")
    with pytest.raises(UsageError, match=r"no scores of 'nrom' \(did you mean norm\?"):
        queries.probes_of(empty_catalog, "nrom")


def test_the_commands_show_spaces_and_pass_raw_texts_on(duckdb_url: str) -> None:
    import catalog

    one = catalog.connect(duckdb_url, create=True)
    run_salient(one, salient(), salient(token_rank=1, token="\n\x1b[31m", head=1))
    run_id = run_weights(one, name="w", source="w")
    publish_results(one, run_id, compositions(composition()))

    def heads(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"COLUMNS": "200"}
        return commands.run(["--db", duckdb_url, *arguments], env=env)

    lines = heads("salient", "m", "l0h0").stdout.splitlines()
    assert lines[0].split() == [
        *("token_rank", "token", "norm", "direction", "output_rank", "output", "logit")
    ]
    assert "' France'" in lines[1]
    assert "' Paris'" in lines[1]
    of_other = heads("writes", " Paris", "-n", "2").stdout
    assert r"'\n\x1b[31m'" in of_other
    rows = json.loads(heads("writes", " Paris", "--model", "m", "-f", "json").stdout)
    assert [row["token"] for row in rows] == [" France", "\n\x1b[31m"]
    read = list(csv.DictReader(io.StringIO(heads("reads", " France", "-f", "csv").stdout)))
    assert (read[0]["name"], read[0]["output"]) == ("L0H0", " Paris")
    assert "reads  query      0     0  L0H0" in heads("composition", "w", "L1H0").stdout
    for arguments, reason in {
        ("writes", "Paris"): "did you mean ' Paris', with a space before it?",
        ("writes", " Paris", "--suppressed"): "no head suppresses ' Paris'",
        ("salient", "w", "L0H0"): "`heads ingest MODEL --suite salient` fills it",
        ("composition", "m", "L0H0"): "`heads ingest MODEL --suite weights` fills it",
        ("salient", "m", "L9H0"): "3 layers of 4 heads",
        ("salient", "m", "9.0"): "write it like L5H3",
        ("reads", " France", "-n", "9" * 30): "expected 1 to 1,000,000",
    }.items():
        done = heads(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert reason in done.stderr
    no_text = heads("writes", b"\xff".decode(errors="surrogateescape"))
    assert (no_text.returncode, "is not UTF-8 text" in no_text.stderr) == (7, True)
