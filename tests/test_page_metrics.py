"""The pages of metrics and of two models, and their queries and charts; without a browser."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import catalogs
import pandas as pd
import published
import pytest
from opening import Open
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from catalog import Catalog, scored
from catalog.declarations import Measurement, Results
from catalog.errors import UsageError
from ui import charts
from ui.charts.metric_map import scale_ends
from ui.cli.main import app

PAGES = Path(__file__).parents[1] / "ui" / "site"
VIEWS = ("map", "distribution", "against another", "by depth")


def fill(made: Catalog, folder: Path) -> Catalog:
    """`base` and `tuned` of 3 layers of 4 heads, `tuned` 0.25 above in L1; `long` of 5 layers of 2.

    `signed`, from -1 to 1, is the first score's double less 1.
    """
    signed = dataclasses.replace(published.metric("signed"), lower=-1.0)
    metrics = [published.metric(), signed]
    values: dict[str, Any] = {
        "base": [[(4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
    }
    values["tuned"] = [list(row) for row in values["base"]]
    values["tuned"][1] = [value + 0.25 for value in values["tuned"][1]]
    values["tuned"][2][3] = None
    values["long"] = [[layer / 4, layer / 4] for layer in range(5)]
    for name, rows in values.items():
        of = published.model(
            name, n_layers=len(rows), n_heads=len(rows[0]), base_model={"tuned": "base"}.get(name)
        )
        run = published.begin(made, name, of=of, metrics=metrics)
        for_both = [
            (one, [[v if v is None or i == 0 else 2 * v - 1 for v in row] for row in rows])
            for i, one in enumerate(metrics)
        ]
        publish_each(made, run, for_both)
    labels = [("base", 0, 0, "role", "sink"), ("tuned", 0, 0, "role", "sink")]
    labels += [("base", 1, 0, "role", "<b>lost*"), ("tuned", 2, 1, "role", "induction")]
    catalogs.add_labels(made, folder, labels)
    return made


def publish_each(made: Catalog, run: int, values: list[tuple[Any, Any]]) -> None:
    measured = [Measurement(metric=one.name, probe="plain", values=rows) for one, rows in values]
    results = Results(measurements=measured)
    published.publish_results(made, run, results, [one for one, _ in values])


class TestQueries:
    @pytest.fixture
    def filled(self, empty_catalog: Catalog, tmp_path: Path) -> Catalog:
        return fill(empty_catalog, tmp_path)

    def test_scores_as_pages_draw_them(self, filled: Catalog) -> None:
        found = [(row["metric"], row["probe"], row["models"]) for row in scored.choices(filled)]
        assert found == [("induction", "plain", 3), ("signed", "plain", 3)]
        assert len(scored.choices(filled, models=["base", "tuned"])) == 2
        assert len(scored.choices(filled, models=["base", "nobody"])) == 0
        assert scored.models_with(filled, "induction", "plain") == ["base", "long", "tuned"]

        rows = scored.values(
            filled, ["tuned", "base"], "induction", "plain", against=("signed", "plain")
        ).rows()
        assert [row["model"] for row in rows] == ["tuned"] * 12 + ["base"] * 12
        assert rows[4] | {"name": "L1H0", "value": 0.45, "depth": 0.5} == rows[4]
        assert rows[4]["against"] == pytest.approx(-0.1)
        assert rows[11]["value"] is None
        assert all(row["value"] is None for row in scored.values(filled, ["base"], "x", "y"))
        with pytest.raises(UsageError, match="no model is named"):
            scored.values(filled, [], "induction", "plain")

        # Two bins: layers 0 and 1 of 5 lie below half, 2 in the second bin.
        profile = scored.depth_profile(filled, "induction", "plain", models=["long"], bins=2).rows()
        assert [(row["depth"], row["mean"], row["heads"]) for row in profile] == [
            (0.25, 0.125, 4),
            (0.75, 0.75, 6),
        ]
        assert (profile[1]["low"], profile[1]["high"]) == (0.5625, 0.9375)
        [together] = scored.depth_profile(filled, "induction", "plain", bins=1)
        assert (together["model"], together["heads"]) == (scored.ALL_MODELS, 12 + 11 + 10)

    def test_two_models_of_one_layout(self, filled: Catalog) -> None:
        rows = scored.differences(filled, "base", "tuned", "induction", "plain").rows()
        assert len(rows) == 12
        assert [row["name"] for row in rows if row["value"]] == ["L1H0", "L1H1", "L1H2", "L1H3"]
        assert rows[4]["value"] == pytest.approx(0.25)
        assert (rows[11]["before"], rows[11]["after"], rows[11]["value"]) == (0.55, None, None)
        for first, second in (("base", "long"), ("base", "nobody")):
            with pytest.raises(UsageError, match="as many heads"):
                scored.differences(filled, first, second, "induction", "plain")
        changes = [tuple(row.values()) for row in scored.label_changes(filled, "base", "tuned")]
        assert changes == [
            ("gained", 2, 1, "L2H1", "role", "induction"),
            ("lost", 1, 0, "L1H0", "role", "<b>lost*"),
        ]


class TestCharts:
    def frame(self, *values: float | None) -> pd.DataFrame:
        rows = [
            {"model": "m", "layer": 0, "head": head, "name": f"L0H{head}", "value": value}
            for head, value in enumerate(values)
        ]
        return pd.DataFrame(rows).assign(n_layers=1, n_heads=len(values))

    def test_colours_follow_the_limits_then_the_scores(self) -> None:
        values = self.frame(0.1, 0.3, None)["value"]
        assert scale_ends(values, 0.0, 1.0) == ((0.0, 1.0), False)
        assert scale_ends(values, None, None) == ((0.1, 0.3), False)
        assert scale_ends(values, -1.0, 1.0) == ((-1.0, 1.0), True)
        assert scale_ends(-2 * values, None, None) == ((-0.6, 0.6), True)
        assert scale_ends(values * 0, None, None) == ((0.0, 1.0), False)
        assert scale_ends(self.frame(None)["value"], None, None) == ((0.0, 1.0), False)

    def test_undefined_scores_are_grey_and_counted(self) -> None:
        spec = charts.metric_map(
            self.frame(0.1, None, 0.3), title="t", lower=0.0, upper=1.0
        ).to_dict()
        [panel] = spec["concat"]
        scores, grey = panel["layer"]
        drawn = [spec["datasets"][one["data"]["name"]] for one in (scores, grey)]
        assert [[row["head"] for row in rows] for rows in drawn] == [[0, 2], [1]]
        assert panel["title"]["subtitle"] == "grey: undefined, 1 of 3 heads"
        assert scores["encoding"]["color"]["scale"]["scheme"] == {"name": "viridis"}

    def test_differences_reach_as_far_to_both_sides(self) -> None:
        [panel] = charts.difference_map(self.frame(-0.5, 0.25), title="t").to_dict()["concat"]
        scale = panel["layer"][0]["encoding"]["color"]["scale"]
        assert scale["domain"] == [-0.5, 0, 0.5]
        assert scale["scheme"] == {"name": "blueorange"}

    def test_every_head_is_counted_once(self) -> None:
        frame = self.frame(0.0, 0.5, 1.0, None)
        spec = charts.metric_histogram(frame, title="t", lower=0.0, upper=1.0).to_dict()
        [bars] = spec["datasets"].values()
        assert [row["heads"] for row in bars if row["heads"]] == [1, 1, 1]
        with pytest.raises(UsageError, match="no head of these models has such a score"):
            charts.metric_histogram(self.frame(None), title="t")

    def test_many_heads_are_drawn_on_a_canvas(self) -> None:
        frame = pd.concat([self.frame(*[0.5] * 64).assign(layer=n, n_layers=80) for n in range(80)])
        for chart in (
            charts.metric_map(frame, title="t"),
            charts.metric_scatter(frame.assign(against=1.0), x="x", y="y"),
        ):
            assert chart.to_dict()["usermeta"] == {"embedOptions": {"renderer": "canvas"}}


@pytest.fixture
def filled(tmp_path: Path) -> Catalog:
    return fill(catalogs.make(tmp_path, {}), tmp_path)


def redraw(page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See that the code and the command beside each chart draw it."""
    monkeypatch.chdir(tmp_path)
    codes = [one.value for one in page.code]
    for code, command in zip(codes[::2], codes[1::2], strict=True):
        exec(code, {})  # noqa: S102 - is what a reader would run
        [drawn] = tmp_path.glob("*.pdf")
        drawn.unlink()
        answer = CliRunner().invoke(app, shlex.split(command)[1:])
        assert answer.exit_code == 0, answer.output
        assert drawn.read_bytes().startswith(b"%PDF-")
        drawn.unlink()


@pytest.mark.usefixtures("filled")
class TestMetrics:
    def test_the_first_view_is_a_map(self, open_page: Open) -> None:
        page = open_page("metrics")
        [chart] = page.get("vega_lite_chart")
        [panel] = json.loads(chart.proto.spec)["concat"]
        assert panel["title"]["text"] == "base"
        assert page.query_params == {
            "metric": "induction",
            "parameter": "(none)",
            "probe": "plain",
            "model": "base",
            "view": "map",
        }

    @pytest.mark.parametrize("view", VIEWS)
    def test_every_chart_is_drawn_by_its_code_and_command(
        self, open_page: Open, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = open_page("metrics", view=view, model=["tuned", "long"], metric="signed")
        assert len(page.get("vega_lite_chart")) == 1
        redraw(page, tmp_path, monkeypatch)

    def test_ranking_leads_to_heads(self, open_page: Open) -> None:
        page = open_page("metrics", view="ranking", model=["base", "tuned"])
        ranked = page.dataframe[0].value
        assert ranked["name"].iloc[0] == "head?model=tuned&head=L1H3"
        assert list(ranked["score_induction_plain"].head(3)) == pytest.approx([0.6, 0.55, 0.55])
        assert len(ranked) == 23

    def test_what_is_not_there_is_said(self, open_page: Open) -> None:
        page = open_page("metrics", metric="?", probe="!", model="nobody")
        assert len(page.error) == 3
        assert len(page.get("vega_lite_chart")) == 1


@pytest.mark.usefixtures("filled")
class TestCompare:
    def test_a_base_and_what_was_tuned_from_it(
        self, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = open_page("compare")
        assert (page.query_params["first"], page.query_params["second"]) == ("base", "tuned")
        changed, labels = (one.value for one in page.dataframe)
        assert set(changed["second"].head(4)) == {
            f"head?model=tuned&head=L1H{head}" for head in range(4)
        }
        assert list(changed["value"].round(6).head(5)) == [0.25] * 4 + [0]
        assert len(changed) == 11
        assert list(labels["change"]) == ["gained", "lost"]
        redraw(page, tmp_path, monkeypatch)

    def test_different_layouts_by_depth(
        self, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = open_page("compare", first="base", second="long")
        assert len(page.get("vega_lite_chart")) == 2
        assert "no head stands for another" in page.caption[0].value
        redraw(page, tmp_path, monkeypatch)

    def test_one_model_is_not_compared_with_itself(self, open_page: Open) -> None:
        assert "two different models" in open_page("compare", second="base").info[0].value


@pytest.mark.parametrize(("name", "says"), [("metrics", "Nothing"), ("compare", "two models")])
def test_empty_states_name_the_command(
    open_page: Open, tmp_path: Path, name: str, says: str
) -> None:
    catalogs.make(tmp_path, {})
    message = open_page(name).info[0].value
    assert says in message
    assert "`heads ingest MODEL`" in message
