"""What is known of one head and of the whole catalog, on both databases."""

from typing import Any

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
from test_stored_patterns import prompt, softmaxed, store

from catalog import Catalog, browse, portrait, publishing, sql
from catalog.declarations import Measurement, Results
from catalog.errors import UsageError

RISING = [[(4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
HOSTILE = "org'/<script>{}%_\\"


def measure(one: Catalog, name: str, values: Any, *, key: str, content: str = "h") -> int:
    run = begin(one, key, of=model(name), probes=[probe(content=content)])
    publish(one, run, values)
    return run


def scores(found: portrait.Portrait) -> list[dict[str, Any]]:
    return found.scores.rows()


def test_places_are_shares_of_the_other_heads_that_lie_below(empty_catalog: Catalog) -> None:
    measure(empty_catalog, "m", RISING, key="a")
    # Another tokenizer: other contents under the same name are compared all the same.
    measure(empty_catalog, "n", uniform(0.2), key="b", content="other")
    [row] = scores(portrait.read(empty_catalog, "m", 1, 1))
    assert row["value"] == pytest.approx(5 / 20)
    assert (row["model_rank"], row["model_heads"]) == (12 - 5, 12)
    assert row["model_place"] == pytest.approx(5 / 11)
    assert (row["catalog_rank"], row["catalog_heads"]) == (7, 24)
    # Below lie 0, 0.05, 0.1, 0.15, 0.2 of its own model and all twelve of the other.
    assert row["catalog_place"] == pytest.approx((5 + 12) / 23)


def test_equal_values_share_a_place_and_undefined_ones_have_none(empty_catalog: Catalog) -> None:
    values = [[0.5, 0.5, 0.1, None], *uniform(None)[1:]]
    measure(empty_catalog, "m", values, key="a")
    found = [scores(portrait.read(empty_catalog, "m", 0, head))[0] for head in range(4)]
    assert [row["model_rank"] for row in found] == [1, 1, 3, None]
    assert [row["model_place"] for row in found] == [0.5, 0.5, 0.0, None]
    assert [row["model_heads"] for row in found] == [3, 3, 3, None]


def test_a_head_alone_has_a_rank_and_no_place(empty_catalog: Catalog) -> None:
    measure(empty_catalog, "m", [[0.5, None, None, None], *uniform(None)[1:]], key="a")
    [row] = scores(portrait.read(empty_catalog, "m", 0, 0))
    assert (row["model_rank"], row["model_heads"], row["model_place"]) == (1, 1, None)


def test_why_a_score_is_undefined(empty_catalog: Catalog) -> None:
    several = [metric(), metric("entropy")]
    run = begin(empty_catalog, metrics=several)
    notes = {"undefined": {"L0H1": "NaN in its weights", "entropy": "no token", "L2": "no heads"}}
    notes["undefined"] |= {"L0 induction": "nothing before", "L0H2 induction": "zero"}
    measured = [
        Measurement(metric=one.name, probe="plain", values=uniform(None)) for one in several
    ]
    results = Results(measurements=measured)
    publishing.publish(empty_catalog.database, run, results, metrics=several, notes=notes)
    why = {
        (layer, head, name): portrait.read(empty_catalog, "m", layer, head).why_undefined(name, run)
        for layer, head, name in (
            (0, 1, "entropy"),
            (2, 3, "induction"),
            (1, 0, "entropy"),
            (0, 0, "induction"),
            (0, 2, "induction"),
        )
    }
    assert list(why.values()) == [
        "NaN in its weights",
        "no heads",
        "no token",
        "nothing before",
        "zero",
    ]
    assert portrait.read(empty_catalog, "m", 1, 0).why_undefined("induction", run) is None


def test_everything_of_a_head_and_nothing_of_its_neighbours(empty_catalog: Catalog) -> None:
    for suite, results in (
        ("salient", salients(salient(), salient(head=1, token=" Spain"))),
        ("weights", compositions(composition(), composition(head=1, from_head=1, kind="key"))),
    ):
        run = begin(empty_catalog, suite, metrics=[metric(suite, suite=suite)])
        publish_results(empty_catalog, run, results)
    pattern_run = store(empty_catalog, prompt({(0, 0): softmaxed(0), (0, 1): softmaxed(1)}))
    found = portrait.read(empty_catalog, "m", 0, 0)
    assert [row["token"] for row in found.salient] == [" France"]
    assert [(row["link"], row["name"], row["kind"]) for row in found.compositions] == [
        ("feeds", "L1H0", "query")
    ]
    assert [(row["prompt"], row["run_id"]) for row in found.patterns] == [("p", pattern_run)]
    assert [run["suite"] for run in found.runs] == ["salient", "weights", "stored_patterns"]
    assert found.runs[0]["params"] == {"a": 1}
    read_by = portrait.read(empty_catalog, "m", 1, 0)
    assert [(row["link"], row["name"]) for row in read_by.compositions] == [("reads", "L0H0")]
    assert not len(portrait.read(empty_catalog, "m", 2, 3).patterns)


def test_neighbours_go_through_layer_after_layer(empty_catalog: Catalog) -> None:
    measure(empty_catalog, "m", RISING, key="a")
    found = {place: portrait.read(empty_catalog, "m", *place) for place in ((0, 0), (1, 0), (2, 3))}
    assert [one.neighbour(-1) for one in found.values()] == [None, (0, 3), (2, 2)]
    assert [one.neighbour(1) for one in found.values()] == [(0, 1), (1, 1), None]


@pytest.mark.parametrize(
    ("name", "layer", "head", "reason"),
    [("x", 0, 0, "no model 'x'"), ("m", 3, 0, "no L3H0"), ("m", 0, 4, "no L0H4")],
)
def test_no_such_head(
    empty_catalog: Catalog, name: str, layer: int, head: int, reason: str
) -> None:
    measure(empty_catalog, "m", RISING, key="a")
    with pytest.raises(UsageError, match=reason):
        portrait.read(empty_catalog, name, layer, head)


def test_a_citation_names_model_runs_and_sources_and_is_bibtex(empty_catalog: Catalog) -> None:
    run = measure(empty_catalog, HOSTILE, RISING, key="a")
    text = portrait.citation(portrait.read(empty_catalog, HOSTILE, 1, 2))
    first, *_ = text.splitlines()
    assert first == "@misc{org-script--L1H2,"
    assert f"run {run}: patterns on plain, float32" in text
    assert "r1" in text
    assert text.splitlines()[-1] == "% induction: s"
    assert "title = {Attention head L1H2 of org'/<script>??\\%\\_?}," in text
    assert text.count("{") == text.count("}") == 4


def test_totals_count_what_readers_see(empty_catalog: Catalog) -> None:
    assert set(browse.totals(empty_catalog).values()) == {0}
    measure(empty_catalog, "m", RISING, key="a")
    measure(empty_catalog, "m", uniform(0.5), key="b")  # replaces the first
    begin(empty_catalog, "c", metrics=[metric("unmeasured")])
    store(empty_catalog, prompt({(0, 0): softmaxed(0)}))
    assert browse.totals(empty_catalog) == {
        "models": 1,
        "heads": 12,
        "scores": 12,
        "metrics": 1,
        "labels": 0,
        "stored_patterns": 1,
    }


def test_models_with_their_organisation_newest_first(empty_catalog: Catalog) -> None:
    for name in ("b", "org/a", HOSTILE):
        measure(empty_catalog, name, RISING, key=name)
    found = {row["model"]: row["organisation"] for row in browse.models(empty_catalog)}
    assert list(found.items()) == [(HOSTILE, "org'"), ("org/a", "org"), ("b", None)]


def test_coverage_is_the_newest_run_that_succeeded(empty_catalog: Catalog) -> None:
    measure(empty_catalog, "m", RISING, key="a")
    newest = measure(empty_catalog, "m", uniform(0.5), key="b")
    failed = begin(empty_catalog, "c", metrics=[metric("x", suite="weights")])
    publishing.fail(empty_catalog.database, failed, "no memory")
    [row] = browse.coverage(empty_catalog)
    [ended] = empty_catalog.sql(f"SELECT finished_at FROM runs WHERE run_id = {newest}")
    assert row == {"model": "m", "suite": "patterns", "measured_at": ended["finished_at"]}
    runs = browse.newest_runs(empty_catalog, limit=2).rows()
    assert [(one["run_id"], one["status"], one["error"]) for one in runs] == [
        (failed, "failed", "no memory"),
        (newest, "succeeded", None),
    ]


def test_one_statement_for_each_part(
    empty_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(empty_catalog, "m", RISING, key="a")
    asked: list[str] = []
    run = sql.run

    def count(connection: Any, query: str, parameters: Any = None) -> Any:
        asked.append(query)
        return run(connection, query, parameters)

    monkeypatch.setattr(sql, "run", count)
    portrait.read(empty_catalog, "m", 0, 0)
    assert len(asked) == 7
    asked.clear()
    browse.totals(empty_catalog)
    browse.models(empty_catalog)
    browse.coverage(empty_catalog)
    browse.newest_runs(empty_catalog, limit=1)
    assert len(asked) == 4
