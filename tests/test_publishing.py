"""Runs become visible as a whole, or not at all."""

import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import published
import pytest
from published import begin, metric, model, probe, publish, uniform

import catalog
from catalog import Catalog, people, publishing
from catalog.declarations import ModelSpec, Rule, TaxonomySpec
from catalog.errors import ModelError

FUNCTION = TaxonomySpec(
    name="function",
    version=1,
    description="d",
    rules=(
        Rule(metric="relation_score", threshold=0.15),
        Rule(metric="induction", threshold=0.4, label="induction", probe="plain"),
    ),
)


def count(one: Catalog, view: str) -> int:
    return int(one.sql(f"SELECT count(*) AS n FROM {view}").rows()[0]["n"])


def test_nothing_is_visible_before_publication(empty_catalog: Catalog) -> None:
    run_id = begin(empty_catalog)
    for view in ("models", "heads", "scores", "labels"):
        assert count(empty_catalog, view) == 0
    assert empty_catalog.sql("SELECT status, model FROM runs").rows() == [
        {"status": "running", "model": "m"}
    ]
    publish(empty_catalog, run_id, uniform(0.5), taxonomies=[FUNCTION])
    assert count(empty_catalog, "models") == 1
    assert count(empty_catalog, "heads") == count(empty_catalog, "scores") == 12
    assert count(empty_catalog, "labels") == 12
    row = empty_catalog.sql("SELECT status, seconds, finished_at, probe FROM runs").rows()[0]
    assert row["status"] == "succeeded"
    assert row["probe"] == "plain"
    assert row["seconds"] >= 0


def test_a_run_replaces_the_one_before_and_history_is_kept(empty_catalog: Catalog) -> None:
    first = begin(empty_catalog, "k1")
    publish(empty_catalog, first, uniform(0.5), taxonomies=[FUNCTION])
    second = begin(empty_catalog, "k2")
    assert count(empty_catalog, "scores") == 12
    publish(empty_catalog, second, uniform(0.1), taxonomies=[FUNCTION])
    assert empty_catalog.sql("SELECT DISTINCT run_id, value FROM scores").rows() == [
        {"run_id": second, "value": 0.1}
    ]
    assert count(empty_catalog, "labels") == 0
    history = empty_catalog.sql(
        "SELECT DISTINCT run_id, value, is_published FROM score_runs ORDER BY run_id"
    ).rows()
    assert history == [
        {"run_id": first, "value": 0.5, "is_published": False},
        {"run_id": second, "value": 0.1, "is_published": True},
    ]


def test_runs_on_different_probes_stand_side_by_side(empty_catalog: Catalog) -> None:
    plain, mine = probe("plain"), probe("mine")
    publish(empty_catalog, begin(empty_catalog, "a"), uniform(0.1))
    both = begin(empty_catalog, "b", probes=[plain, mine])
    publish(empty_catalog, both, uniform(0.2), probes=[plain, mine])
    again = begin(empty_catalog, "c", probes=[mine])
    publish(empty_catalog, again, uniform(0.3), probes=[mine])
    rows = empty_catalog.sql("SELECT DISTINCT probe, value, run_id FROM scores ORDER BY probe")
    assert rows.rows() == [
        {"probe": "mine", "value": 0.3, "run_id": again},
        {"probe": "plain", "value": 0.2, "run_id": both},
    ]


def test_a_probe_of_the_same_name_and_other_content_replaces_it(empty_catalog: Catalog) -> None:
    publish(empty_catalog, begin(empty_catalog, "a"), uniform(0.1))
    changed = probe("plain", content="other")
    run_id = begin(empty_catalog, "b", probes=[changed])
    publish(empty_catalog, run_id, uniform(0.2), probes=[changed])
    assert count(empty_catalog, "scores") == 12


def test_a_failed_run_leaves_the_previous_one_visible(empty_catalog: Catalog) -> None:
    first = begin(empty_catalog, "k1")
    publish(empty_catalog, first, uniform(0.5))
    second = begin(empty_catalog, "k2")
    publishing.fail(empty_catalog.database, second, "ValueError: no")
    assert empty_catalog.sql("SELECT DISTINCT run_id FROM scores").rows() == [{"run_id": first}]
    failed = empty_catalog.sql("SELECT status, error FROM runs WHERE run_id = :r", r=second)
    assert failed.rows() == [{"status": "failed", "error": "ValueError: no"}]
    with pytest.raises(ValueError, match="it has failed already"):
        publish(empty_catalog, second, uniform(0.1))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (uniform(float("nan")), "induction on plain is nan for L0H0"),
        (uniform(float("inf")), "is inf for L0H0"),
        ([[0.1] * 4] * 2, "expected 3 layers of 4 heads"),
        ([[0.1] * 4, [0.1] * 4, [0.1] * 3], "expected 3 layers of 4 heads"),
    ],
)
def test_what_cannot_be_a_score_is_refused_as_a_whole(
    empty_catalog: Catalog, values: published.Values, reason: str
) -> None:
    first = begin(empty_catalog, "k1")
    publish(empty_catalog, first, uniform(0.5))
    second = begin(empty_catalog, "k2")
    with pytest.raises(ValueError, match=reason):
        publish(empty_catalog, second, values)
    assert empty_catalog.sql("SELECT DISTINCT run_id, value FROM scores").rows() == [
        {"run_id": first, "value": 0.5}
    ]


def test_undefined_scores_are_null(empty_catalog: Catalog) -> None:
    publish(empty_catalog, begin(empty_catalog), uniform(None))
    assert empty_catalog.sql("SELECT DISTINCT value FROM scores").rows() == [{"value": None}]


def test_a_killed_run_is_closed_with_its_reason(empty_url: str) -> None:
    one = catalog.connect(empty_url, create=True)
    program = textwrap.dedent(
        f"""
        import sys, os, signal
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import catalog, published
        published.begin(catalog.connect({empty_url!r}))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    killed = subprocess.Popen([sys.executable, "-c", program])
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    assert one.sql("SELECT status FROM runs").rows() == [{"status": "running"}]
    row = catalog.connect(empty_url).sql("SELECT status, error FROM runs").rows()[0]
    assert killed.wait() == -9
    assert row["status"] == "failed"
    assert "ended before the run" in row["error"]


def test_a_running_run_is_not_taken_for_dead(empty_url: str) -> None:
    begin(catalog.connect(empty_url, create=True))
    again = catalog.connect(empty_url)
    assert again.sql("SELECT status FROM runs").rows() == [{"status": "running"}]


def test_a_new_revision_replaces_suite_by_suite_and_keeps_what_people_said(
    empty_catalog: Catalog, tmp_path: Path
) -> None:
    score = metric("relation_score", "copying", "relations")
    shipped = probe("shipped", category="Algorithmic")
    publish(empty_catalog, begin(empty_catalog, "k1"), uniform(0.5), taxonomies=[FUNCTION])
    relations = begin(empty_catalog, "k2", metrics=[score], probes=[shipped])
    publish(
        empty_catalog,
        relations,
        uniform(0.9),
        metrics=[score],
        probes=[shipped],
        taxonomies=[FUNCTION],
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("model,layer,head,taxonomy,label\nm,2,3,verdict,plausible\n")
    people.import_labels(empty_catalog.database, labels, source="human", reviewer="R")
    run_id = begin(empty_catalog, "k3", of=model(revision="r2"))
    assert empty_catalog.sql("SELECT revision FROM models").rows() == [{"revision": "r1"}]
    publish(empty_catalog, run_id, uniform(0.1), taxonomies=[FUNCTION])
    assert empty_catalog.sql("SELECT revision FROM models").rows() == [{"revision": "r2"}]
    assert count(empty_catalog, "heads") == 12
    seen = (
        "SELECT metric, run_id, count(*) AS n FROM scores GROUP BY metric, run_id ORDER BY metric"
    )
    assert empty_catalog.sql(seen).rows() == [
        {"metric": "induction", "run_id": run_id, "n": 12},
        {"metric": "relation_score[copying]", "run_id": relations, "n": 12},
    ]
    said = "SELECT label, source, count(*) AS n FROM labels GROUP BY label, source ORDER BY label"
    expected = [
        {"label": "Algorithmic", "source": "rule", "n": 12},
        {"label": "plausible", "source": "human", "n": 1},
    ]
    assert empty_catalog.sql(said).rows() == expected
    again = people.import_labels(empty_catalog.database, labels, source="human", reviewer="R")
    assert (again.added, again.known) == (0, 1)
    back = begin(empty_catalog, "k4")
    publish(empty_catalog, back, uniform(0.1), taxonomies=[FUNCTION])
    assert empty_catalog.sql(said).rows() == expected
    assert publishing.published_runs(
        empty_catalog.database, "m", ["k1/plain", "k3/plain", "k4/plain"]
    ) == {"k4/plain": back}


def test_a_rule_label_names_the_run_that_measured_its_score(empty_catalog: Catalog) -> None:
    first = begin(empty_catalog, "a")
    publish(empty_catalog, first, uniform(0.5), taxonomies=[FUNCTION])
    other = metric("relation_score", "copying", "relations")
    second = begin(empty_catalog, "b", metrics=[other])
    publish(empty_catalog, second, uniform(0.9), metrics=[other], taxonomies=[FUNCTION])
    rows = empty_catalog.sql("SELECT DISTINCT label, run_id, added_at FROM labels").rows()
    assert [(row["label"], row["run_id"]) for row in rows] == [("induction", first)]
    third = begin(empty_catalog, "c")
    publish(empty_catalog, third, uniform(0.5), taxonomies=[FUNCTION])
    assert empty_catalog.sql("SELECT DISTINCT run_id FROM labels").rows() == [{"run_id": third}]


def test_a_run_under_way_shows_no_metric_and_changes_none(empty_catalog: Catalog) -> None:
    begin(empty_catalog, "a")
    assert count(empty_catalog, "metrics") == 0
    publish(empty_catalog, begin(empty_catalog, "b"), uniform(0.5))
    newer = replace(metric(), version=2, description="other")
    begin(empty_catalog, "c", metrics=[newer])
    assert empty_catalog.sql("SELECT version, description FROM metrics").rows() == [
        {"version": 1, "description": "d"}
    ]
    run_id = begin(empty_catalog, "d", metrics=[newer])
    publish(empty_catalog, run_id, uniform(0.5), metrics=[newer])
    assert empty_catalog.sql("SELECT version FROM metrics").rows() == [{"version": 2}]


def test_first_runs_of_several_models_at_once(empty_catalog: Catalog) -> None:
    failures: list[Exception] = []

    def go(name: str) -> None:
        try:
            run_id = begin(empty_catalog, name, of=model(name, source=name))
            publish(empty_catalog, run_id, uniform(0.5), taxonomies=[FUNCTION])
        except Exception as error:  # noqa: BLE001 - counted
            failures.append(error)

    threads = [threading.Thread(target=go, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(empty_catalog, "models") == 6
    assert count(empty_catalog, "labels") == 6 * 12


def test_a_layout_is_filled_in_by_an_ingest_that_fits(
    empty_catalog: Catalog, tmp_path: Path
) -> None:
    layout = ModelSpec(name="m", revision=None, n_layers=3, n_heads=4)
    people.add_layout(empty_catalog.database, layout)
    labels = tmp_path / "labels.csv"
    labels.write_text("model,layer,head,taxonomy,label\nm,0,0,verdict,plausible\n")
    people.import_labels(empty_catalog.database, labels, source="published", reviewer=None)
    with pytest.raises(ModelError, match="knows m with 3 layers of 4 heads, and this one has 5"):
        begin(empty_catalog, of=model(n_layers=5))
    publish(empty_catalog, begin(empty_catalog), uniform(0.5))
    assert count(empty_catalog, "models") == 1
    assert count(empty_catalog, "heads") == 12
    assert count(empty_catalog, "labels") == 1


def test_another_model_of_the_same_name_is_refused(empty_catalog: Catalog) -> None:
    publish(empty_catalog, begin(empty_catalog), uniform(0.5))
    with pytest.raises(ModelError, match="--name"):
        begin(empty_catalog, of=model(revision="r2", source="folder:/elsewhere/m"))
    moved = begin(empty_catalog, of=model(source="folder:/elsewhere/m"))
    publish(empty_catalog, moved, uniform(0.5))


def test_a_relations_category_comes_from_its_set(empty_catalog: Catalog) -> None:
    score = metric("relation_score", "copying", "relations")
    shipped, mine = probe("shipped", category="Algorithmic"), probe("mine")
    run_id = begin(empty_catalog, metrics=[score], probes=[mine])
    publish(
        empty_catalog,
        run_id,
        uniform(0.9),
        metrics=[score],
        probes=[mine],
        taxonomies=[FUNCTION],
    )
    assert count(empty_catalog, "labels") == 0
    run_id = begin(empty_catalog, metrics=[score], probes=[shipped])
    values = [[0.9, 0.15, 0.149, None]] + [[0.0] * 4] * 2
    publish(
        empty_catalog,
        run_id,
        values,
        metrics=[score],
        probes=[shipped],
        taxonomies=[FUNCTION],
    )
    found = empty_catalog.sql("SELECT layer, head, label, reason FROM labels ORDER BY head").rows()
    assert [(row["layer"], row["head"], row["label"]) for row in found] == [
        (0, 0, "Algorithmic"),
        (0, 1, "Algorithmic"),
    ]
    assert found[0]["reason"] == "relation_score[copying] 0.9 >= 0.15"


def test_rules_are_applied_again_without_a_run_of_a_model(empty_catalog: Catalog) -> None:
    publish(empty_catalog, begin(empty_catalog), uniform(0.3), taxonomies=[FUNCTION])
    assert count(empty_catalog, "labels") == 0
    looser = TaxonomySpec(
        name="function",
        version=1,
        description="d",
        rules=(Rule(metric="induction", threshold=0.3, label="induction", probe="plain"),),
    )
    counts = publishing.classify(empty_catalog.database, "m", [looser])
    assert counts == {"function": 12}
    assert empty_catalog.sql("SELECT DISTINCT reason FROM labels").rows() == [
        {"reason": "induction 0.3 >= 0.3"}
    ]
    runs = empty_catalog.sql("SELECT suite, status FROM runs ORDER BY run_id").rows()
    assert runs[1] == {"suite": "classify", "status": "succeeded"}
    publish(empty_catalog, begin(empty_catalog, "k2"), uniform(0.3), taxonomies=[FUNCTION])
    assert count(empty_catalog, "labels") == 12, "the rules given last stay in force"
    publishing.classify(empty_catalog.database, "m", [FUNCTION])
    assert count(empty_catalog, "labels") == 0
