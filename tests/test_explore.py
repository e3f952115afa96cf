"""The table of all heads, as a query on both databases."""

import json
from pathlib import Path

import catalogs
import published
import pytest
from typer.testing import CliRunner

from catalog import Catalog, explore, queries
from catalog.errors import UsageError
from catalog.explore import Filter, Label, Measured, Range, View
from ui.cli.main import app

INDUCTION, ENTROPY = Measured("induction", "plain"), Measured("entropy", "plain")
GOOD, BAD = Label("verdict", "good"), Label("verdict", "bad")
HOSTILE = "x'; DROP TABLE head; -- \\ %s :model_0 \"<script>"
UNPRINTABLE = f"{HOSTILE}\u202e\n_"


@pytest.fixture
def filled(empty_catalog: Catalog, tmp_path: Path) -> Catalog:
    """`m` and `other` of 3 layers of 4 heads, `flat` of one layer of 2."""
    both = [published.metric("induction"), published.metric("entropy")]
    for name, start in (("m", 0.0), ("other", 0.5)):
        values: list[list[float | None]] = [
            [start + (4 * layer + head) / 40 for head in range(4)] for layer in range(3)
        ]
        values[0][1] = None
        of = published.model(name, architecture={"m": "llama", "other": "gpt2"}[name])
        run = published.begin(empty_catalog, name, of=of, metrics=both)
        published.publish(empty_catalog, run, values, metrics=both)
    labels = [("m", 0, 0, "verdict", "good"), ("m", 0, 0, "verdict", "bad")]
    labels += [("m", 1, 1, "verdict", "good"), ("flat", 0, 1, "verdict", HOSTILE)]
    catalogs.fill(empty_catalog, tmp_path, {"flat": (1, 2), HOSTILE: (1, 1)}, labels)
    tokens = [published.salient(layer=2, head=3, token=UNPRINTABLE), published.salient(layer=1)]
    unused = published.metric("t", suite="salient")
    run = published.begin(empty_catalog, "tokens", metrics=[unused])
    published.publish_results(empty_catalog, run, published.salients(*tokens))
    return empty_catalog


def names(filled: Catalog, chosen: Filter) -> set[str]:
    found = explore.heads(filled, View(chosen), limit=100).rows()
    assert filled.sql(explore.statement(View(chosen)).shown()).rows() == found
    counted = [row["heads"] for row in explore.facets(filled, chosen) if row["facet"] == "model"]
    assert sum(counted) == len(found)
    return {f"{row['model']} {row['name']}" for row in found}


def test_without_a_filter_every_head_is_there(filled: Catalog) -> None:
    assert len(names(filled, Filter())) == 12 + 12 + 2 + 1


def test_models_and_architectures(filled: Catalog) -> None:
    assert names(filled, Filter(models=["flat"])) == {"flat L0H0", "flat L0H1"}
    assert len(names(filled, Filter(models=["flat", "m"]))) == 14
    assert {one.split()[0] for one in names(filled, Filter(architectures=["gpt2"]))} == {"other"}
    assert names(filled, Filter(models=["m"], architectures=["gpt2"])) == set()


def test_depth_holds_its_ends(filled: Catalog) -> None:
    assert {one.split()[1][:2] for one in names(filled, Filter(depth=Range(0.5, 1)))} == {
        "L1",
        "L2",
    }
    # A model of one layer has no depth.
    assert len(names(filled, Filter(depth=Range(lower=0)))) == 24


def test_ranges_hold_their_ends_and_no_undefined_score(filled: Catalog) -> None:
    within = Filter(scores={INDUCTION: Range(0.0, 0.1)})
    assert names(filled, within) == {"m L0H0", "m L0H2", "m L0H3", "m L1H0"}
    both = Filter(scores={INDUCTION: Range(0.075), ENTROPY: Range(upper=0.1)})
    assert names(filled, both) == {"m L0H3", "m L1H0"}
    assert len(names(filled, Filter(scores={INDUCTION: Range()}))) == 27


def test_labels_any_all_none(filled: Catalog) -> None:
    assert names(filled, Filter(any_of=[GOOD, BAD])) == {"m L0H0", "m L1H1"}
    assert names(filled, Filter(all_of=[GOOD, BAD])) == {"m L0H0"}
    assert names(filled, Filter(any_of=[GOOD], none_of=[BAD])) == {"m L1H1"}
    assert len(names(filled, Filter(none_of=[GOOD, BAD]))) == 25


def test_tokens_by_a_part_of_their_text(filled: Catalog) -> None:
    assert names(filled, Filter(token="fRAn")) == {"m L1H0"}
    assert names(filled, Filter(token="paris", models=["other"])) == set()


def test_tokens_are_compared_as_text(filled: Catalog) -> None:
    for part in ("%", "_", "drop table", "\u202e\n", "'", "\\", ":model_0"):
        assert names(filled, Filter(token=part)) == {"m L2H3"}


def test_hostile_names_are_values_also_when_pasted(filled: Catalog) -> None:
    assert names(filled, Filter(models=[HOSTILE])) == {f"{HOSTILE} L0H0"}
    assert names(filled, Filter(any_of=[Label("verdict", HOSTILE)])) == {"flat L0H1"}
    assert names(filled, Filter(none_of=[Label(HOSTILE, HOSTILE)], models=["flat"])) != set()
    nothing = Filter(scores={Measured(HOSTILE, HOSTILE): Range(0.0)}, architectures=[HOSTILE])
    assert names(filled, nothing) == set()
    assert len(queries.models(filled)) == 4


def test_the_shown_statement_answers_the_same_in_a_shell(filled: Catalog) -> None:
    chosen = Filter(models=[HOSTILE, "m"], scores={INDUCTION: Range(0.1)}, token="")
    view = View(chosen, [INDUCTION, Measured(HOSTILE, HOSTILE)], INDUCTION, descending=True)
    url = filled.database.url.render_as_string(hide_password=False)
    query = explore.statement(view).shown()
    answer = CliRunner().invoke(app, ["--db", url, "sql", query, "--format", "json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == explore.all_heads(filled, view).rows()


def test_order_by_any_column_with_the_undefined_last(filled: Catalog) -> None:
    view = View(Filter(), [INDUCTION, ENTROPY], ENTROPY, descending=True)
    rows = explore.heads(filled, view, limit=100).rows()
    assert (rows[0]["model"], rows[0]["name"]) == ("other", "L2H3")
    scores = [row[explore.column(view, ENTROPY)] for row in rows]
    defined = [score for score in scores if score is not None]
    assert len(defined) == 22
    assert scores == sorted(defined, reverse=True) + [None] * 5
    for order in explore.COLUMNS:
        for descending in (False, True):
            ordered = explore.heads(filled, View(order=order, descending=descending), limit=100)
            column = [row[order] for row in ordered if row[order] is not None]
            if order in {"layer", "head", "depth"}:
                assert column == sorted(column, reverse=descending)
    with pytest.raises(UsageError, match="no column induction on plain"):
        explore.statement(View(order=INDUCTION))
    with pytest.raises(UsageError, match=r"no column h\.model; DROP"):
        explore.statement(View(order="h.model; DROP"))


def test_pages_are_apart_and_together_all(filled: Catalog) -> None:
    view = View(order="depth", descending=True)
    pages = [explore.heads(filled, view, limit=10, offset=start) for start in (0, 10, 20, 30)]
    assert [len(one) for one in pages] == [10, 10, 7, 0]
    places = [(row["model"], row["name"]) for one in pages for row in one]
    assert places == [(row["model"], row["name"]) for row in explore.all_heads(filled, view)]
    with pytest.raises(UsageError, match="cannot be asked for"):
        explore.heads(filled, view, limit=0)


def test_facets_count_heads(filled: Catalog) -> None:
    counted = {
        (row["facet"], row["taxonomy"], row["value"]): row["heads"]
        for row in explore.facets(filled, Filter(models=["m", "flat"]))
    }
    assert counted == {
        ("model", None, "m"): 12,
        ("model", None, "flat"): 2,
        ("architecture", None, "llama"): 12,
        ("architecture", None, None): 2,
        ("label", "verdict", "good"): 2,
        ("label", "verdict", "bad"): 1,
        ("label", "verdict", HOSTILE): 1,
    }


def test_choices_are_what_there_is(filled: Catalog) -> None:
    found = [tuple(row.values()) for row in explore.choices(filled)]
    assert {one for one in found if one[0] == "score"} == {
        ("score", "induction", "plain"),
        ("score", "entropy", "plain"),
    }
    assert ("model", "other", "gpt2") in found
    assert ("label", HOSTILE, "verdict") in found
    assert len(found) == len(set(found)) == 4 + 3 + 2


def test_names_of_columns_are_plain_and_apart() -> None:
    long = [Measured("a" * 80, "b"), Measured("a" * 80, "c"), Measured(HOSTILE, "p")]
    view = View(scores=[*long, INDUCTION, INDUCTION])
    found = [explore.column(view, score) for score in [*long, INDUCTION]]
    assert len(set(found)) == 4
    assert all(name.isidentifier() and name.isascii() and len(name) < 63 for name in found)
    assert found[-1] == "score_induction_plain"
