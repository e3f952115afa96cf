"""Pages without a browser: what they show for which catalog."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import catalogs
import pandas as pd
import pyarrow as pa
import pytest
from opening import Open, healthy, shown_counts
from published import begin, metric, probe, publish, uniform
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

import catalog
from catalog import publishing, queries
from ingest.classify import FUNCTION, ROLE, with_thresholds
from ui import charts
from ui.cli.main import app

UI = Path(__file__).parents[1] / "ui"
PAGES = ("category_map", "layer_bins")
DOWNLOADS = ["PNG", "SVG", "PDF", "CSV", "Parquet"]


def panels(page: AppTest) -> list[dict[str, Any]]:
    [chart] = page.get("vega_lite_chart")
    found: list[dict[str, Any]] = json.loads(chart.proto.spec)["concat"]
    return found


def downloads(page: AppTest) -> list[str]:
    return [cast("Any", one).label for one in page.get("download_button")]


def drawn_models(page: AppTest) -> list[str]:
    return [panel["title"]["text"] for panel in panels(page)]


@pytest.fixture
def two_models(tmp_path: Path) -> catalog.Catalog:
    labels = [
        *catalogs.published_labels("gpt2-xl"),
        ("little", 0, 0, "function", "Knowledge"),
        ("little", 1, 1, "function", "Knowledge"),
        ("little", 1, 1, "function", "Linguistic"),
    ]
    return catalogs.make(tmp_path, {"gpt2-xl": (48, 25), "little": (2, 3), "a": (1, 1)}, labels)


@pytest.mark.parametrize("name", PAGES)
class TestEmptyStates:
    def test_no_catalog(self, open_page: Open, name: str) -> None:
        page = open_page(name)
        assert "there is no catalog" in page.error[0].value
        assert "heads ingest MODEL" in page.error[0].value

    def test_no_model(self, open_page: Open, name: str, tmp_path: Path) -> None:
        catalogs.make(tmp_path, {})
        page = open_page(name)
        assert "`heads ingest MODEL`" in page.info[0].value
        assert not page.multiselect

    def test_no_label(self, open_page: Open, name: str, tmp_path: Path) -> None:
        catalogs.make(tmp_path, {"m": (2, 2)})
        page = open_page(name)
        assert "`heads labels import FILE.csv`" in page.info[0].value
        assert page.multiselect[0].value == ["m"]

    @pytest.mark.usefixtures("two_models")
    def test_no_label_of_this_model(self, open_page: Open, name: str) -> None:
        page = open_page(name, model="a", taxonomy="function")
        assert "`heads labels import FILE.csv`" in page.info[0].value
        assert drawn_models(page) == ["a"]

    @pytest.mark.usefixtures("two_models")
    def test_no_model_chosen(self, open_page: Open, name: str) -> None:
        page = open_page(name)
        healthy(page.multiselect[0].set_value([]).run())
        assert "Choose a model" in page.info[0].value
        assert "model" not in page.query_params
        assert healthy(page.run()).multiselect[0].value == []


@pytest.mark.usefixtures("two_models")
class TestChoice:
    def test_first_view_is_the_first_model_with_labels(self, open_page: Open) -> None:
        page = open_page("category_map")
        assert drawn_models(page) == ["gpt2-xl"]
        assert page.selectbox[0].value == "description_verdict"
        assert page.query_params == {"model": "gpt2-xl", "taxonomy": "description_verdict"}

    @pytest.mark.parametrize("name", PAGES)
    def test_a_link_opens_the_same_view(self, open_page: Open, name: str) -> None:
        page = open_page(name, model=["little", "gpt2-xl"], taxonomy="function")
        assert drawn_models(page) == ["little", "gpt2-xl"]
        assert page.selectbox[0].value == "function"
        again = open_page(name, **page.query_params)
        assert panels(again) == panels(page)

    def test_choices_are_mirrored_in_the_url(self, open_page: Open) -> None:
        page = open_page("layer_bins")
        page.multiselect[0].set_value(["gpt2-xl", "little"])
        page.number_input[0].set_value(3)
        healthy(page.run())
        assert page.query_params == {
            "model": ["gpt2-xl", "little"],
            "taxonomy": "description_verdict",
            "bins by": "number",
            "bins": "3",
            "heights": "counts",
        }
        assert drawn_models(page) == ["gpt2-xl", "little"]

    def test_going_back_in_the_browser_goes_back_in_the_page(self, open_page: Open) -> None:
        page = open_page("category_map", model="gpt2-xl", taxonomy="function")
        healthy(page.multiselect[0].set_value(["little"]).run())
        assert drawn_models(page) == ["little"]
        page.query_params["model"] = "gpt2-xl"
        assert drawn_models(healthy(page.run())) == ["gpt2-xl"]

    def test_names_that_are_not_there_are_reported_and_the_rest_is_shown(
        self, open_page: Open
    ) -> None:
        page = open_page("layer_bins", model=["gpt2-x", "little"], taxonomy="?", bins="99")
        shown = [one.value.replace("\\", "") for one in page.error]
        assert shown == [
            (
                "the catalog has no model 'gpt2-x' (did you mean gpt2-xl?); "
                "`heads models` lists what it has"
            ),
            "no head in the catalog has a label of the taxonomy '?'",
            "bins must be a whole number from 1 to 16, got '99'",
        ]
        assert drawn_models(page) == ["little"]
        assert page.number_input[0].value == 4

    def test_nothing_stale_after_new_labels(
        self, open_page: Open, two_models: catalog.Catalog, tmp_path: Path
    ) -> None:
        page = open_page("category_map", model="a", taxonomy="function")
        catalogs.add_labels(two_models, tmp_path, [("a", 0, 0, "function", "Translation")])
        healthy(page.run())
        counts = shown_counts(page)
        assert counts["Translation"] == "1 (100.0%)"
        assert counts["Unclassified"] == "0 (0.0%)"


class TestContents:
    @pytest.mark.usefixtures("two_models")
    def test_the_table_counts_heads_once(self, open_page: Open) -> None:
        page = open_page("category_map", model=["little", "gpt2-xl"], taxonomy="function")
        assert list(page.table[0].value.columns) == ["little", "gpt2-xl"]
        assert list(shown_counts(page).items()) == [
            ("Algorithmic", "0 (0.0%)"),
            ("Knowledge", "1 (16.7%)"),
            ("Linguistic", "0 (0.0%)"),
            ("Translation", "0 (0.0%)"),
            ("2 categories", "1 (16.7%)"),
            ("Unclassified", "4 (66.7%)"),
        ]

    @pytest.mark.usefixtures("two_models")
    def test_the_table_has_the_published_percentages(self, open_page: Open) -> None:
        page = open_page("layer_bins", model="gpt2-xl")
        counts = page.dataframe[0].value
        first = counts[counts["bin"] == "[0, 12)"].set_index("label")
        assert list(first["share"].round(1)) == [21.2, 66.7, 12.1, 0.0]

    @pytest.mark.usefixtures("two_models")
    @pytest.mark.parametrize("name", PAGES)
    def test_picture_and_data_can_be_downloaded(self, open_page: Open, name: str) -> None:
        page = open_page(name)
        assert downloads(page) == DOWNLOADS

    @pytest.mark.usefixtures("two_models")
    @pytest.mark.parametrize("name", PAGES)
    def test_the_code_beside_a_chart_draws_it(
        self, open_page: Open, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = open_page(name)
        monkeypatch.chdir(tmp_path)
        code, command = page.code
        exec(code.value, {})  # noqa: S102 - is what a reader would run
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        (tmp_path / f"{name}.pdf").unlink()
        assert CliRunner().invoke(app, shlex.split(command.value)[1:]).exit_code == 0
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF-")

    def test_labels_by_rule_are_explained(self, open_page: Open, tmp_path: Path) -> None:
        made = catalogs.make(tmp_path, {})
        copying = [metric("relation_score", "copying")]
        shipped = [probe("shipped", category="Algorithmic")]
        run = begin(made, metrics=copying, probes=shipped)
        publish(made, run, uniform(0.43), metrics=copying, probes=shipped, taxonomies=[FUNCTION])
        page = open_page("category_map")
        assert "source of the labels: rule" in page.caption[-1].value
        assert "thresholds" in page.caption[-1].value
        assert shown_counts(page)["Algorithmic"] == "12 (100.0%)"

    def test_thresholds_move_as_if_the_catalog_were_classified_by_them(
        self, open_page: Open, tmp_path: Path
    ) -> None:
        made = catalogs.make(tmp_path, {})
        for family, one in (("relation_score", 0.0), ("induction", 0.3)):
            measured = [metric(family, "copying" if family == "relation_score" else None)]
            on = probe("shipped" if family == "relation_score" else "random_repeat", "h", "Known")
            values = [[one + (4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
            run = begin(made, family, metrics=measured, probes=[on])
            publish(made, run, values, metrics=measured, probes=[on], taxonomies=[FUNCTION, ROLE])
        queried = queries.head_labels(made, ["m"], "function").pandas()
        page = open_page("category_map")
        assert [(slider.label, slider.value) for slider in page.slider] == [
            ("relation_score from", 0.15)
        ]
        assert shown_counts(page)["Known"].startswith("9 ")
        page.slider[0].set_value(0.4).run()
        assert shown_counts(page)["Known"].startswith("4 ")
        assert page.query_params["relation_score from"] == "0.4"
        assert "classify --set" in page.caption[-1].value
        linked = open_page("category_map", taxonomy="role", **{"induction from": "0.6"})
        assert shown_counts(linked)["induction"].startswith("6 ")

        for taxonomy, before in (("function", queried), ("role", None)):
            rules = queries.rules(made, taxonomy)
            for rule in rules:
                rule["threshold"] = 0.45
            names = [rule["metric"] for rule in rules]
            scores = queries.rule_scores(made, ["m"], names).pandas()
            frame = queries.head_labels(made, ["m"], taxonomy).pandas()
            seen = charts.relabel(frame, scores, rules)
            publishing.classify(made.database, "m", with_thresholds([taxonomy], 0.45, {}))
            wanted = queries.head_labels(made, ["m"], taxonomy).pandas()
            pd.testing.assert_frame_equal(seen, wanted, check_dtype=False)
            assert before is None or not before.equals(wanted)

    @pytest.mark.parametrize("name", PAGES)
    @pytest.mark.parametrize(
        "hostile", [catalogs.HOSTILE, "![x](https://example.org/x.png)", ":red[x] $y$ `z`"]
    )
    def test_hostile_names_are_text(
        self, open_page: Open, tmp_path: Path, name: str, hostile: str
    ) -> None:
        catalogs.make(tmp_path, {hostile: (1, 2)}, [(hostile, 0, 0, hostile, hostile)])
        page = open_page(name)
        assert drawn_models(page) == [hostile]
        if name == "layer_bins":
            assert page.dataframe[0].value["model"].iloc[0] == hostile
        else:  # whose table is read as Markdown
            [shown] = page.table[0].value.columns
            assert shown != hostile
            assert shown.replace("\\", "").replace("\u2060", "") == hostile
        assert not page.markdown
        *fixed, caption = page.caption
        assert hostile not in caption.value
        assert hostile in caption.value.replace("\\", "").replace("\u2060", "")
        assert [one.value for one in fixed] == ["The same in Python", "The same from a shell"]


@pytest.mark.usefixtures("two_models")
def test_the_frame_opens_the_overview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_DATABASE_URL", f"duckdb:///{tmp_path / 'heads.duckdb'}")
    page = healthy(AppTest.from_file(UI / "app.py", default_timeout=30).run())
    assert page.title[0].value == "Overview"


@pytest.mark.parametrize("state", ["no catalog", "no model", "no label"])
@pytest.mark.parametrize("name", [path.stem for path in sorted((UI / "site").glob("[a-z]*.py"))])
def test_where_there_is_nothing_every_page_names_a_command(
    name: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADS_DATABASE_URL", f"duckdb:///{tmp_path / 'heads.duckdb'}")
    if state != "no catalog":
        catalogs.make(tmp_path, {"m": (2, 2)} if state == "no label" else {})
    page = AppTest.from_file(UI / "app.py", default_timeout=60).run()
    page.query_params.clear()
    healthy(page.switch_page(f"site/{name}.py").run())
    told = [one.value for one in (*page.info, *page.error, *page.code)]
    # The table of heads shows those of a model of which nothing else is known.
    shown = state == "no label" and name == "heads"
    assert shown or any(re.search(r"(`|^)heads \w", text) for text in told), told


MASSES = {name: [[0.25, 0.5]] * 12 for name in ("hash", "star", "whitespace", "newline", "special")}


@pytest.fixture
def two_measured(tmp_path: Path) -> catalog.Catalog:
    made = catalogs.make(tmp_path, {"unmeasured": (1, 1)})
    for name in ("base", "tuned"):
        catalogs.add_token_masses(made, name, MASSES)
    catalogs.add_token_masses(made, "base", {"hash": [[0.5, 0.25]] * 12}, probe="plain")
    return made


def drawn_bars(page: AppTest) -> set[tuple[str, int, str]]:
    [chart] = page.get("vega_lite_chart")
    # Streamlit sends the rows beside the specification.
    [rows] = [pa.ipc.open_stream(sent.data.data).read_all() for sent in chart.proto.datasets]
    return {(row["model"], row["layer"], row["class"]) for row in rows.to_pylist()}


class TestTokenClasses:
    def test_nothing_measured_yet(self, open_page: Open, tmp_path: Path) -> None:
        assert "there is no catalog" in open_page("token_classes").error[0].value
        catalogs.make(tmp_path, {"m": (1, 1)})
        assert "`heads ingest MODEL --suite patterns`" in open_page("token_classes").info[0].value

    @pytest.mark.usefixtures("two_measured")
    def test_first_view(self, open_page: Open) -> None:
        page = open_page("token_classes")
        assert page.query_params == {
            "model": ["base", "tuned"],
            "probe": "markdown",
            "unit": "sum",
            "class": ["hash", "star", "whitespace"],
            "layer": ["0", "4", "7", "11"],
        }
        assert drawn_bars(page) == {
            (model, layer, name)
            for model in ("base", "tuned")
            for layer in (0, 4, 7, 11)
            for name in ("hash", "star", "whitespace")
        }
        totals = page.dataframe[0].value
        assert set(totals["total"]) == {0.75}
        assert downloads(page) == DOWNLOADS
        assert not page.error

    @pytest.mark.usefixtures("two_measured")
    def test_a_link_opens_the_same_view(self, open_page: Open) -> None:
        asked: dict[str, str | list[str]] = {
            "model": ["tuned", "base"],
            "probe": "markdown",
            "unit": "mean",
            "class": ["newline", "hash"],
            "layer": ["3"],
        }
        page = open_page("token_classes", **asked)
        assert page.query_params == asked | {"layer": "3"}
        assert drawn_bars(page) == {
            (model, 3, name) for model in ("base", "tuned") for name in ("newline", "hash")
        }
        [chart] = page.get("vega_lite_chart")
        assert "counts in each: newline, hash." in chart.proto.spec
        assert "Mean attention (share)" in chart.proto.spec

    @pytest.mark.usefixtures("two_measured")
    def test_a_choice_goes_to_the_url(self, open_page: Open) -> None:
        page = open_page("token_classes")
        # On plain only one of them is measured.
        assert page.selectbox[0].options == ["markdown"]
        page.multiselect[0].set_value(["base"])
        healthy(page.run())
        assert page.query_params["model"] == "base"
        assert page.selectbox[0].options == ["markdown", "plain"]
        page.multiselect[1].set_value([])
        healthy(page.run())
        assert page.info[0].value == "Choose a class to see something."

    @pytest.mark.usefixtures("two_measured")
    def test_names_that_are_not_there_are_reported_and_the_rest_is_shown(
        self, open_page: Open
    ) -> None:
        page = open_page(
            "token_classes", model=["unmeasured", "tuned"], probe="x", unit="y", layer=["99", "1"]
        )
        shown = [one.value.replace("\\", "") for one in page.error]
        assert shown == [
            "nothing is measured here of model 'unmeasured'",
            "nothing is measured here of probe 'x'",
            "nothing is measured here of unit 'y'",
            "nothing is measured here of layer '99'",
        ]
        assert {(model, layer) for model, layer, _ in drawn_bars(page)} == {("tuned", 1)}

    def test_hostile_names_are_text(self, open_page: Open, tmp_path: Path) -> None:
        made = catalogs.make(tmp_path, {})
        hostile = "![x](https://example.org/x.png)"
        catalogs.add_token_masses(made, hostile, {"hash": [[0.5]]}, probe=hostile)
        page = open_page("token_classes")
        assert drawn_bars(page) == {(hostile, 0, "hash")}
        assert not page.markdown
        assert hostile not in page.caption[-1].value
