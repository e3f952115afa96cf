"""What pages keep of the catalog's answers: as long as nothing is written, and no longer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogs
import published
import pyarrow as pa
import pytest
from cachetools import LRUCache
from opening import shown_counts
from published import begin, metric, probe, publish, uniform
from sqlalchemy import Engine, event
from streamlit.testing.v1 import AppTest
from test_stored_patterns import prompt, softmaxed, store

import catalog
from catalog import Catalog, pattern_rows, patterns, publishing, sql
from catalog.declarations import Measurement, PromptPatterns, Results, TaxonomySpec
from catalog.people import add_layout
from ingest.classify import FUNCTION
from ui.site import _answers

UI = Path(__file__).parents[1] / "ui"
PAGES = sorted(one.stem for one in (UI / "site").glob("[a-z]*.py") if one.stem != "jobs")
"""Jobs are read from the job store, again and again."""
METRIC_VIEWS = ("map", "distribution", "against another", "by depth", "ranking")

Open = Callable[..., AppTest]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All statements that are run, one after the other."""
    found: list[str] = []
    run = sql.run

    def noted(connection: Any, query: str, parameters: Any = None) -> sql.Result:
        found.append(query)
        return run(connection, query, parameters)

    monkeypatch.setattr(sql, "run", noted)
    return found


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Open:
    def run(one: Catalog, name: str, **wanted: str | list[str]) -> AppTest:
        url = one.database.url.render_as_string(hide_password=False)
        monkeypatch.setenv("HEADS_DATABASE_URL", url)
        # Within the site where a page links to others.
        page = AppTest.from_file(UI / ("app.py" if name == "head" else f"site/{name}.py"))
        if name == "head":
            page.run(timeout=60).switch_page("site/head.py")
        page.query_params.update(wanted)
        page.run(timeout=60)
        assert not page.exception
        return page

    return run


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    _answers.forget()


def add(one: Catalog, name: str) -> None:
    """A model with scores, from which labels follow."""
    metrics, of = [metric("relation_score", "copying", "relations")], published.model(name)
    probes = [probe("shipped", category="Algorithmic")]
    run_id = begin(one, f"k of {name}", of=of, metrics=metrics, probes=probes)
    publish(one, run_id, uniform(0.5), metrics=metrics, probes=probes, taxonomies=[FUNCTION])


def test_everything_that_writes_changes_the_stamp(empty_catalog: Catalog, tmp_path: Path) -> None:
    one, seen = empty_catalog, [empty_catalog.stamp()]

    def expect_another() -> None:
        seen.append(one.stamp())
        assert len(set(seen)) == len(seen)

    run_id = begin(one)
    expect_another()
    publish(one, run_id, uniform(0.5))
    expect_another()
    publishing.fail(one.database, begin(one, "again"), "no")
    expect_another()
    add_layout(one.database, published.model("by hand"))
    expect_another()
    catalogs.add_labels(one, tmp_path, [("m", 0, 0, "verdict", "good")])
    expect_another()
    publishing.classify(one.database, "m", [FUNCTION])
    expect_another()
    triangle = pa.array([1.0, 0.5, 0.5], pa.float16())
    stored = PromptPatterns(
        prompt="p", token_ids=[1, 2], tokens=["a", "b"], patterns={(0, 1): triangle}
    )
    run_id = begin(one, "patterns", metrics=[metric(suite=pattern_rows.SUITE)], probes=[])
    publishing.publish(one.database, run_id, Results(patterns=[stored]), metrics=())
    expect_another()
    patterns.delete(one, "m", ["L0"])
    expect_another()
    one.sql("SELECT * FROM models")
    assert one.stamp() == seen[-1]


def test_an_answer_is_kept_until_something_is_written(
    duckdb_url: str, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    monkeypatch.setenv("HEADS_DATABASE_URL", duckdb_url)
    add(one, "a")
    count = "SELECT count(*) AS heads FROM heads WHERE model = :model"
    for _ in range(2):
        assert _answers.connect().sql(count, model="a").rows() == [{"heads": 12}]
        assert _answers.connect().sql(count, model="b").rows() == [{"heads": 0}]
    assert asked == [count, count]
    begun = _answers.connect()
    add(one, "b")
    assert begun.sql(count, model="b").rows() == [{"heads": 0}]  # as the page began
    assert _answers.connect().sql(count, model="b").rows() == [{"heads": 12}]
    # Another catalog in the same place, with as many writes, is another catalog.
    path = one.database.path
    assert path is not None
    path.unlink()
    with pytest.raises(catalog.HeadsError, match="there is no catalog"):
        _answers.connect()
    other = catalog.connect(duckdb_url, create=True)
    add(other, "c")
    add(other, "d")
    assert _answers.connect().sql(count, model="b").rows() == [{"heads": 0}]


def test_what_is_kept_is_bounded(duckdb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.connect(duckdb_url, create=True)
    monkeypatch.setenv("HEADS_DATABASE_URL", duckdb_url)
    kept = LRUCache[Any, Any](1_000_000, getsizeof=_answers.size_of)
    monkeypatch.setattr(_answers, "_answers", kept)
    one = _answers.connect()
    for rows in (*range(40_000, 40_010), 200_000):
        assert len(one.sql(f"SELECT range AS n FROM range({rows})")) == rows
    assert len(kept) == 3  # of 320 kB each, and the largest not at all
    assert kept.currsize <= kept.maxsize


def test_an_open_page_shows_what_is_published_and_relabelled(
    duckdb_url: str, tmp_path: Path, open_page: Open
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    add(one, "a")
    overview = open_page(one, "overview")
    shown = open_page(one, "category_map", model="a")
    heads = open_page(one, "heads")
    assert "1 of 1 models" in captions(overview)
    assert "Heads 1 to 12 of 12" in captions(heads)
    assert counts(shown) == {"Algorithmic": 12}

    run_id = begin(one, "under way", of=published.model("b"))
    assert "1 of 1 models" in captions(overview.run())
    publish(one, run_id, uniform(0.5))
    assert "2 of 2 models" in captions(overview.run())
    assert "Heads 1 to 24 of 24" in captions(heads.run())

    publishing.classify(one.database, "a", [stricter(FUNCTION)])
    assert "No head in the catalog has a label" in shown.run().info[0].value
    catalogs.add_labels(one, tmp_path, [("a", 0, 0, "function", "Knowledge")])
    assert counts(shown.run()) == {"Knowledge": 1, "Unclassified": 11}


def stricter(spec: TaxonomySpec) -> TaxonomySpec:
    return replace(spec, rules=[replace(rule, threshold=0.75) for rule in spec.rules])


def captions(page: AppTest) -> str:
    assert not page.exception
    return "\n".join(one.value for one in page.caption)


def counts(page: AppTest) -> dict[str, int]:
    """Of the categories that the map's first model has."""
    heads = {category: int(text.split()[0]) for category, text in shown_counts(page).items()}
    return {category: count for category, count in heads.items() if count}


SHOWN = "all that a page shows at once"
INDUCTION = "induction on shipped"
VIEWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in PAGES},
    "heads, chosen": (
        "heads",
        {
            "model": SHOWN,
            "range": INDUCTION,
            f"{INDUCTION} from": "0.1",
            "label": "function: Algorithmic",
            "token": "Fra",
            "show": INDUCTION,
            "order": INDUCTION,
        },
    ),
    "map": ("category_map", {"model": SHOWN}),
    "map, moved": ("category_map", {"model": SHOWN, "relation_score from": "0.6"}),
    "bins": ("layer_bins", {"model": SHOWN}),
    "patterns by name": ("patterns", {"model": SHOWN, "prompt": "p"}),
    "patterns by score": ("patterns", {"model": SHOWN, "prompt": "p", "heads by": "score"}),
    "token classes": ("token_classes", {"model": SHOWN}),
    **{f"metrics, {view}": ("metrics", {"model": SHOWN, "view": view}) for view in METRIC_VIEWS},
    "depth of all": ("metrics", {"model": SHOWN, "view": "by depth", "all models": "yes"}),
    "head": ("head", {"model": "m1", "head": "L0H0"}),
}


def fill(one: Catalog, models: int) -> list[str]:
    """Models of which everything is known that a page shows."""
    names = [f"m{place}" for place in range(models)]
    metrics = [
        metric("relation_score", "copying", "relations"),
        metric(),
        metric("token_mass", "hash"),
    ]
    probes = [probe("shipped", category="Algorithmic")]
    for name in names:
        of = published.model(name)
        run_id = begin(one, name, of=of, metrics=metrics, probes=probes)
        measured = [
            Measurement(metric=each.name, probe="shipped", values=uniform(0.5)) for each in metrics
        ]
        results = replace(
            published.salients(published.salient()),
            measurements=measured,
            compositions=published.compositions(published.composition()).compositions,
        )
        publishing.publish(one.database, run_id, results, metrics=metrics, taxonomies=[FUNCTION])
        store(one, prompt({(0, 0): softmaxed(0)}), of=of)
    return names


@pytest.fixture(scope="module")
def few_and_many(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Catalog, list[str]]]:
    """A catalog of two models, and one of twenty, with their names."""
    made = []
    for models in (2, 20):
        url = f"duckdb:///{tmp_path_factory.mktemp('many') / 'heads.duckdb'}"
        one = catalog.connect(url, create=True)
        made.append((one, fill(one, models)))
    return made


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """All that any database is told, by whatever way."""
    told: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield told
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.xdist_group("answers")  # both catalogs are made once
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_asks_as_often_for_many_models_as_for_two(
    view: str,
    few_and_many: list[tuple[Catalog, list[str]]],
    open_page: Open,
    statements: list[str],
) -> None:
    name, wanted = VIEWS[view]
    told = []
    for one, models in few_and_many:
        asked = {key: models[:9] if value == SHOWN else value for key, value in wanted.items()}
        statements.clear()
        page = open_page(one, name, **asked)
        assert not page.error
        assert page.dataframe or page.get("vega_lite_chart") or page.get("bidi_component")
        told.append(list(statements))
    assert len(told[0]) == len(told[1]), told
    # Some are of connecting, and of a head those of the overview, which the site begins with.
    assert len(told[0]) <= (26 if name == "head" else 18)
