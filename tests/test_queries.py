"""What pages read, the same on both databases."""

from pathlib import Path

import catalogs
import pytest
from published import begin, metric, probe, publish, uniform

from catalog import Catalog, queries
from catalog.declarations import Rule, TaxonomySpec
from catalog.errors import UsageError

LABELS = [
    ("owner/Big-Model-7B", 0, 0, "verdict", "good"),
    ("owner/Big-Model-7B", 0, 0, "verdict", "bad"),
    ("owner/Big-Model-7B", 1, 2, "verdict", "good"),
    ("small", 0, 0, "verdict", "rare"),
    ("small", 0, 0, "other", "x"),
]


@pytest.fixture
def filled(empty_catalog: Catalog, tmp_path: Path) -> Catalog:
    layouts = {"small": (1, 2), "owner/Big-Model-7B": (2, 3), "bare": (1, 1)}
    catalogs.fill(empty_catalog, tmp_path, layouts, LABELS)
    return empty_catalog


def test_models_say_how_many_heads_are_labelled(filled: Catalog) -> None:
    found = {row["model"]: row for row in queries.models(filled)}
    assert {name: row["labelled_heads"] for name, row in found.items()} == {
        "small": 1,
        "owner/Big-Model-7B": 2,
        "bare": 0,
    }
    assert (found["small"]["n_layers"], found["small"]["n_heads"]) == (1, 2)


def test_a_known_model_is_returned(filled: Catalog) -> None:
    assert queries.require_model(filled, "small")["n_heads"] == 2


@pytest.mark.parametrize("typed", ["owner/big-model-7b", "Big-Model-7b", "big-model-8B"])
def test_an_unknown_model_brings_the_near_ones(filled: Catalog, typed: str) -> None:
    with pytest.raises(UsageError, match=r"did you mean owner/Big-Model-7B\?.*`heads models`"):
        queries.require_model(filled, typed)


def test_an_unknown_model_without_near_ones(filled: Catalog) -> None:
    with pytest.raises(UsageError, match=r"no model 'qwertyuiop'; `heads models` lists"):
        queries.require_model(filled, "qwertyuiop")


def test_taxonomies_count_heads_once_and_come_in_order_of_use(filled: Catalog) -> None:
    assert queries.taxonomies(filled, "owner/Big-Model-7B").rows() == [
        {"taxonomy": "verdict", "labels": 3, "heads": 2},
        {"taxonomy": "other", "labels": 1, "heads": 0},
    ]
    assert [row["heads"] for row in queries.taxonomies(filled)] == [0, 0]
    both = queries.taxonomies(filled, "small", "owner/Big-Model-7B")
    assert {row["taxonomy"]: row["heads"] for row in both} == {"verdict": 3, "other": 1}


def test_labels_of_a_taxonomy_are_those_of_all_models(filled: Catalog) -> None:
    assert queries.taxonomy_labels(filled, "verdict") == ["bad", "good", "rare"]
    assert queries.taxonomy_labels(filled, "none") == []


def test_every_head_has_a_row_and_every_label_too(filled: Catalog) -> None:
    rows = queries.head_labels(filled, ["small", "owner/Big-Model-7B"], "verdict").rows()
    assert [(row["model"], row["name"], row["label"]) for row in rows] == [
        ("small", "L0H0", "rare"),
        ("small", "L0H1", None),
        ("owner/Big-Model-7B", "L0H0", "bad"),
        ("owner/Big-Model-7B", "L0H0", "good"),
        ("owner/Big-Model-7B", "L0H1", None),
        ("owner/Big-Model-7B", "L0H2", None),
        ("owner/Big-Model-7B", "L1H0", None),
        ("owner/Big-Model-7B", "L1H1", None),
        ("owner/Big-Model-7B", "L1H2", "good"),
    ]
    assert {(row["n_layers"], row["n_heads"]) for row in rows[2:]} == {(2, 3)}
    assert rows[0] | {"source": "human", "reason": "a reader", "confidence": None} == rows[0]


def test_the_order_of_models_is_the_callers(filled: Catalog) -> None:
    rows = queries.head_labels(filled, ["owner/Big-Model-7B", "bare", "small"], "verdict").rows()
    assert list(dict.fromkeys(row["model"] for row in rows)) == [
        "owner/Big-Model-7B",
        "bare",
        "small",
    ]


def test_unknown_names_add_nothing(filled: Catalog) -> None:
    assert len(queries.head_labels(filled, ["nobody"], "verdict")) == 0
    rows = queries.head_labels(filled, ["small"], "none").rows()
    assert [row["label"] for row in rows] == [None, None]
    with pytest.raises(UsageError, match="no model is named"):
        queries.head_labels(filled, [], "verdict")


def test_names_are_values_and_never_sql(filled: Catalog) -> None:
    hostile = "x') OR 1=1 --"
    assert len(queries.head_labels(filled, [hostile], hostile)) == 0
    assert queries.taxonomies(filled, hostile).rows()[0]["heads"] == 0


def test_rule_labels_come_with_the_score_behind_them(empty_catalog: Catalog) -> None:
    copying = metric("relation_score", "copying")
    shipped = probe("shipped", category="Algorithmic")
    function = TaxonomySpec(
        name="function",
        version=1,
        description="d",
        rules=[Rule(metric="relation_score", threshold=0.15)],
    )
    run = begin(empty_catalog, metrics=[copying], probes=[shipped])
    publish(
        empty_catalog,
        run,
        uniform(0.43),
        metrics=[copying],
        probes=[shipped],
        taxonomies=[function],
    )
    row = queries.head_labels(empty_catalog, ["m"], "function").rows()[0]
    assert (row["label"], row["source"]) == ("Algorithmic", "rule")
    assert row["reason"] == "relation_score[copying] 0.43 >= 0.15"
    assert row["scores"] == "relation_score[copying] 0.430 (shipped)"


def test_heads_without_a_label_come_with_their_scores_too(empty_catalog: Catalog) -> None:
    induction = metric("induction")
    role = TaxonomySpec(
        name="role",
        version=1,
        description="d",
        rules=[Rule(metric="induction", threshold=0.4, label="induction")],
    )
    run = begin(empty_catalog, metrics=[induction])
    publish(empty_catalog, run, uniform(0.1), metrics=[induction], taxonomies=[role])
    row = queries.head_labels(empty_catalog, ["m"], "role").rows()[0]
    assert (row["label"], row["scores"]) == (None, "induction 0.100 (plain)")
    assert queries.head_labels(empty_catalog, ["m"], "verdict").rows()[0]["scores"] is None


MASSES: dict[str, list[list[float | None]]] = {
    "hash": [[0.25, 0.5], [0.125, None], [None, None]],
    "star": [[0.0, 0.25], [0.5, 0.25], [None, None]],
}
"""By layer and head; one head of layer 1 has no score, and no head of layer 2."""


@pytest.fixture
def with_masses(empty_catalog: Catalog) -> Catalog:
    catalogs.add_token_masses(empty_catalog, "owner/b", MASSES)
    catalogs.add_token_masses(empty_catalog, "a", {"hash": [[1.0], [0.5]]})
    catalogs.add_token_masses(empty_catalog, "a", {"hash": [[0.75], [0.25]]}, probe="plain")
    return empty_catalog


class TestTokenTotals:
    def test_totals_are_sums_over_heads_and_means_over_those_with_a_score(
        self, with_masses: Catalog
    ) -> None:
        rows = queries.token_totals(with_masses, ["owner/b"], "markdown").rows()
        assert [
            (row["layer"], row["class"], row["total"], row["mean"], row["heads"]) for row in rows
        ] == [
            (0, "hash", 0.75, 0.375, 2),
            (0, "star", 0.25, 0.125, 2),
            (1, "hash", 0.125, 0.125, 1),
            (1, "star", 0.75, 0.375, 2),
            (2, "hash", None, None, 0),
            (2, "star", None, None, 0),
        ]
        assert {(row["n_heads"], row["n_layers"], row["probe"]) for row in rows} == {
            (2, 3, "markdown")
        }

    def test_models_come_in_the_callers_order(self, with_masses: Catalog) -> None:
        for models in (["owner/b", "a"], ["a", "owner/b"]):
            rows = queries.token_totals(with_masses, models, "markdown")
            assert list(dict.fromkeys(row["model"] for row in rows)) == models

    def test_layers_and_classes_can_be_chosen(self, with_masses: Catalog) -> None:
        rows = queries.token_totals(
            with_masses, ["owner/b"], "markdown", layers=[1], classes=["star"]
        ).rows()
        assert [(row["layer"], row["class"], row["total"]) for row in rows] == [(1, "star", 0.75)]

    def test_what_is_not_there_is_explained(self, with_masses: Catalog, tmp_path: Path) -> None:
        catalogs.fill(with_masses, tmp_path, {"bare": (1, 1)})
        both = ["owner/b", "a"]
        for models, probe_name, options, reason in (
            ([], "plain", {}, "no model is named"),
            (["owner/c"], "plain", {}, "no model 'owner/c'"),
            (["bare"], "plain", {}, "of bare to classes of tokens is not measured yet; `heads in"),
            (both, "plain", {}, "owner/b to classes of tokens is not measured on 'plain', but on "),
            (both, "markdown", {"layers": [2]}, "a has nothing .* layers 0 to 1 and the .* hash"),
            (both, "markdown", {"classes": ["'"]}, "owner/b has nothing .*the classes hash, star"),
            (both, "markdown", {"classes": []}, "owner/b has nothing"),
        ):
            with pytest.raises(UsageError, match=reason):
                queries.token_totals(with_masses, models, probe_name, **options)

    def test_choices_are_what_totals_can_be_asked_for(self, with_masses: Catalog) -> None:
        assert sorted(tuple(row.values()) for row in queries.token_choices(with_masses)) == [
            ("a", "markdown", "hash"),
            ("a", "plain", "hash"),
            ("owner/b", "markdown", "hash"),
            ("owner/b", "markdown", "star"),
        ]
