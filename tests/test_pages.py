"""Pages without a browser: what they show for which catalog."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catalogs
import pyarrow as pa
import pytest
from published import begin, metric, probe, publish, uniform
from streamlit.testing.v1 import AppTest

import catalog
from ingest.classify import FUNCTION

UI = Path(__file__).parents[1] / "ui"
PAGES = ("category_map", "layer_bins")

Open = Callable[..., AppTest]


@pytest.fixture
def open_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Run a page on the catalog in the test's folder, with what its URL asks for."""
    monkeypatch.setenv("HEADS_DATABASE_URL", f"duckdb:///{tmp_path / 'heads.duckdb'}")

    def run(name: str, **asked: str | list[str]) -> AppTest:
        page = AppTest.from_file(UI / "pages" / f"{name}.py", default_timeout=30)
        page.query_params.update(asked)
        return healthy(page.run())

    return run


def healthy(page: AppTest) -> AppTest:
    assert not page.exception
    return page


def panels(page: AppTest) -> list[dict[str, Any]]:
    [chart] = page.get("vega_lite_chart")
    found: list[dict[str, Any]] = json.loads(chart.proto.spec)["concat"]
    return found


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
            "bins": "3",
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
        counts = page.dataframe[0].value.set_index("category")["heads"]
        assert counts["Translation"] == 1
        assert counts["Unclassified"] == 0


class TestContents:
    @pytest.mark.usefixtures("two_models")
    def test_the_table_counts_heads_once(self, open_page: Open) -> None:
        page = open_page("category_map", model="little", taxonomy="function")
        counts = page.dataframe[0].value.set_index("category")
        assert counts["heads"].to_dict() == {
            "Algorithmic": 0,
            "Knowledge": 1,
            "Linguistic": 0,
            "Translation": 0,
            "2 categories": 1,
            "Unclassified": 4,
        }
        assert counts["share"]["Unclassified"] == pytest.approx(100 * 4 / 6)

    @pytest.mark.usefixtures("two_models")
    def test_the_table_has_the_published_percentages(self, open_page: Open) -> None:
        page = open_page("layer_bins", model="gpt2-xl")
        counts = page.dataframe[0].value
        first = counts[counts["bin"] == "[0, 12)"].set_index("label")
        assert list(first["share"].round(1)) == [21.2, 66.7, 12.1, 0.0]

    @pytest.mark.usefixtures("two_models")
    @pytest.mark.parametrize("name", PAGES)
    def test_data_can_be_downloaded(self, open_page: Open, name: str) -> None:
        page = open_page(name)
        assert len(page.get("download_button")) == 1

    def test_labels_by_rule_are_explained(self, open_page: Open, tmp_path: Path) -> None:
        made = catalogs.make(tmp_path, {})
        copying = [metric("relation_score", "copying")]
        shipped = [probe("shipped", category="Algorithmic")]
        run = begin(made, metrics=copying, probes=shipped)
        publish(made, run, uniform(0.43), metrics=copying, probes=shipped, taxonomies=[FUNCTION])
        page = open_page("category_map")
        assert "source of the labels: rule" in page.caption[0].value
        assert "thresholds" in page.caption[0].value
        assert page.dataframe[0].value["heads"].max() == 12

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
        assert page.dataframe[0].value["model"].iloc[0] == hostile
        assert not page.markdown
        [caption] = page.caption
        assert hostile not in caption.value
        assert hostile in caption.value.replace("\\", "")


@pytest.mark.usefixtures("two_models")
def test_the_frame_opens_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADS_DATABASE_URL", f"duckdb:///{tmp_path / 'heads.duckdb'}")
    page = healthy(AppTest.from_file(UI / "app.py", default_timeout=30).run())
    assert page.title[0].value == "Category map"


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
            "model": "base",
            "probe": "markdown",
            "unit": "sum",
            "class": ["hash", "star", "whitespace"],
            "layer": ["0", "4", "7", "11"],
        }
        assert drawn_bars(page) == {
            ("base", layer, name)
            for layer in (0, 4, 7, 11)
            for name in ("hash", "star", "whitespace")
        }
        totals = page.dataframe[0].value
        assert set(totals["total"]) == {0.75}
        assert len(page.get("download_button")) == 1
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
        page.multiselect[0].set_value(["base", "tuned"])
        healthy(page.run())
        assert page.query_params["model"] == ["base", "tuned"]
        # On plain only one of them is measured.
        assert page.selectbox[0].options == ["markdown"]
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
        assert hostile not in page.caption[0].value
