"""The view of correlations between relation scores of weights and of runs."""

import json
import subprocess
from collections.abc import Sequence

import commands
import numpy as np
import published
import pytest
from numpy.typing import NDArray

import catalog
from catalog import Catalog, queries
from catalog.declarations import Measurement, MetricSpec, ProbeSpec, RelationSpec, Results
from catalog.errors import UsageError

Array = NDArray[np.float64]
SHAPE = (published.N_LAYERS, published.N_HEADS)
TEMPLATES = ("means", "story", "document", "think")
PAIRED = {
    ("with", "promoted"): ("dynamic_score", "relation_score"),
    ("with", "suppressed"): ("dynamic_suppression", "relation_suppression"),
    ("without", "promoted"): ("dynamic_score_without_context", "relation_score"),
    ("without", "suppressed"): ("dynamic_suppression_without_context", "relation_suppression"),
}


def probe(name: str, kind: str) -> ProbeSpec:
    relation = RelationSpec(name="copying", category=None, k=1, n_pairs=40)
    return ProbeSpec(
        name=name, kind=kind, content_hash=name, description="d", relations=(relation,)
    )


def publish(
    to: Catalog, model: str, suite: str, on: Sequence[ProbeSpec], scores: dict[str, Array]
) -> None:
    """Scores by `family[relation]@probe`, NaN where undefined."""
    metrics: dict[str, MetricSpec] = {}
    measurements = []
    for place, values in scores.items():
        name, _, where = place.partition("@")
        family, _, relation = name.rstrip("]").partition("[")
        metrics[name] = published.metric(family, relation, suite)
        rows = [[None if np.isnan(value) else float(value) for value in row] for row in values]
        measurements.append(Measurement(metric=name, probe=where, values=rows))
    spec = published.model(model, source=model)
    known = list(metrics.values())
    run = published.begin(to, f"{model}/{suite}", of=spec, metrics=known, probes=on)
    published.publish_results(to, run, Results(measurements=measurements), known)


def measured(
    to: Catalog, model: str, of: str, relations: Sequence[str], seed: int
) -> dict[str, Array]:
    """Random scores of one set in both suites, some undefined."""
    random = np.random.default_rng(seed)

    def scores() -> Array:
        values = random.integers(0, 9, SHAPE) / 8
        values[0, random.integers(0, SHAPE[1])] = np.nan
        return values

    statics = {
        f"{family}[{relation}]@{of}": scores()
        for family in ("relation_score", "relation_suppression", "relation_mrr_25")
        for relation in relations
    }
    dynamics = {
        f"{family}[{relation}]@{of}:{template}": scores()
        for family, _ in PAIRED.values()
        for relation in relations
        for template in TEMPLATES
    }
    publish(to, model, "relations", [probe(of, "relations")], statics)
    prompted = [probe(f"{of}:{template}", "relation_prompts") for template in TEMPLATES]
    publish(to, model, "dynamic", prompted, dynamics)
    return statics | dynamics


def pearson(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, int]:
    one, other = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    both = ~np.isnan(one) & ~np.isnan(other)
    return float(np.corrcoef(one[both], other[both])[0, 1]), int(both.sum())


def test_correlations_equal_numpys(empty_catalog: Catalog) -> None:
    """Per template and over all of them, of every model, set and relation by itself."""
    both, one = ("copying", "antonym"), ("copying",)
    scores = {
        ("m", "shipped"): measured(empty_catalog, "m", "shipped", both, seed=1),
        ("n", "shipped"): measured(empty_catalog, "n", "shipped", both, seed=2),
        ("o", "a:b"): measured(empty_catalog, "o", "a:b", one, seed=3),
    }
    rows = empty_catalog.sql("SELECT * FROM relation_correlations").rows()
    assert len(rows) == (2 + 2 + 1) * 4 * 5
    for row in rows:
        values = scores[row["model"], row["probe"]]
        dynamic, static = PAIRED[row["context"], row["direction"]]
        templates = TEMPLATES if row["template"] == "all" else (row["template"],)
        own = values[f"{static}[{row['relation']}]@{row['probe']}"]
        runs = [
            (own, values[f"{dynamic}[{row['relation']}]@{row['probe']}:{template}"])
            for template in templates
        ]
        r, points = pearson(runs)
        assert row["pearson"] == pytest.approx(r, abs=1e-12)
        assert row["points"] == points


@pytest.mark.parametrize("constant", ["static", "dynamic"])
def test_a_constant_score_has_no_correlation(empty_catalog: Catalog, constant: str) -> None:
    """0.1 has no exact binary form, so that sums of it are not exact either."""
    same, other = np.full(SHAPE, 0.1), np.arange(12.0).reshape(SHAPE) / 12
    static, dynamic = (same, other) if constant == "static" else (other, same)
    publish(
        empty_catalog,
        "m",
        "relations",
        [probe("shipped", "relations")],
        {"relation_score[copying]@shipped": static},
    )
    publish(
        empty_catalog,
        "m",
        "dynamic",
        [probe("shipped:means", "relation_prompts")],
        {"dynamic_score[copying]@shipped:means": dynamic},
    )
    rows = queries.relation_correlations(empty_catalog, "m").rows()
    assert rows == [
        {
            "relation": "copying",
            "probe": "shipped",
            "template": template,
            "context": "with",
            "direction": "promoted",
            "pearson": None,
            "points": 12,
        }
        for template in ("all", "means")
    ]


def test_what_is_measured_by_one_suite_only_has_no_correlation(empty_catalog: Catalog) -> None:
    values = np.arange(12.0).reshape(SHAPE) / 12
    publish(
        empty_catalog,
        "m",
        "relations",
        [probe("shipped", "relations")],
        {"relation_score[copying]@shipped": values},
    )
    publish(
        empty_catalog,
        "n",
        "dynamic",
        [probe("shipped:means", "relation_prompts")],
        {"dynamic_score[copying]@shipped:means": values},
    )
    assert empty_catalog.sql("SELECT * FROM relation_correlations").rows() == []
    for model in ("m", "n"):
        with pytest.raises(UsageError, match="--suite relations --suite dynamic"):
            queries.relation_correlations(empty_catalog, model)
    with pytest.raises(UsageError, match="no model 'x'"):
        queries.relation_correlations(empty_catalog, "x")


def test_the_command_shows_them_and_names_what_is_missing(
    duckdb_url: str,
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    measured(one, "m", "shipped", ("copying",), seed=4)

    def heads(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(["--db", duckdb_url, "correlations", *arguments])

    done = heads("m", "--format", "json")
    shown, expected = json.loads(done.stdout), queries.relation_correlations(one, "m").rows()
    assert len(shown) == len(expected) == 4 * 5
    for row, other in zip(shown, expected, strict=True):
        assert row == other | {"pearson": pytest.approx(other["pearson"], abs=1e-12)}
    unknown = heads("x")
    assert (unknown.returncode, "no model 'x'" in unknown.stderr) == (UsageError.exit_code, True)
