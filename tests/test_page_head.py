"""The pages Overview and Head without a browser."""

from pathlib import Path
from typing import Any

import catalogs
import pytest
from opening import Open, healthy
from published import (
    begin,
    composition,
    compositions,
    metric,
    model,
    publish,
    publish_results,
    salient,
    salients,
    uniform,
)
from test_stored_patterns import prompt, softmaxed, store

from catalog import Catalog

UI = Path(__file__).parents[1] / "ui"


@pytest.fixture
def open_page(open_site: Open) -> Open:
    """Pages that link to each other."""
    return open_site


@pytest.fixture
def made(tmp_path: Path) -> Catalog:
    """Two measured models, and one of an organisation that is not measured."""
    one = catalogs.make(tmp_path, {"org/bare": (2, 2)})
    for key, name in (("a", "m"), ("b", "n")):
        values: list[list[float | None]] = [
            [(4 * layer + head) / 20 for head in range(4)] for layer in range(3)
        ]
        values[0][0] = None
        facts: dict[str, Any] = (
            {"architecture": "gpt2", "n_params": 5 * 10**9} if name == "n" else {}
        )
        publish(one, begin(one, key, of=model(name, **facts)), values)
    for suite, results in (
        ("salient", salients(salient(), salient(output_rank=1, output=" Lyon"))),
        ("weights", compositions(composition())),
    ):
        run = begin(one, suite, metrics=[metric(suite, suite=suite)])
        publish_results(one, run, results)
    store(one, prompt({(0, 0): softmaxed(0)}))
    return one


class TestHead:
    @pytest.mark.usefixtures("made")
    def test_everything_of_a_head(self, open_page: Open) -> None:
        page = open_page("head", model="m", head="L0H0")
        tables = [one.value for one in page.dataframe]
        scores, salient_tokens, feeds, stored, runs = tables
        assert scores["undefined"].tolist() == ["undefined"]
        assert salient_tokens.iloc[0].to_dict() == {
            "token": "' France'",
            "norm": 2.5,
            "promoted": "' Paris', ' Lyon'",
        }
        assert feeds["head"].tolist() == ["head?model=m&head=L1H0"]
        assert stored["prompt"].tolist() == ["p"]
        assert set(runs["suite"]) == {"patterns", "salient", "weights", "stored_patterns"}
        assert len(page.get("vega_lite_chart")) == 1
        assert "@misc{m-L0H0," in page.code[-1].value

    @pytest.mark.usefixtures("made")
    def test_places_in_model_and_catalog(self, open_page: Open) -> None:
        [scores, *_] = open_page("head", model="m", head="L2H3").dataframe
        row = scores.value.iloc[0]
        assert (row["rank in model"], row["rank in catalog"]) == ("1 of 11", "1 of 22")
        assert row["place in model"] == 1
        assert row["place in catalog"] == pytest.approx(20 / 21)
        assert "undefined" not in scores.value

    @pytest.mark.usefixtures("made")
    def test_neighbours_are_in_the_url_and_going_back_comes_back(self, open_page: Open) -> None:
        page = open_page("head", model="m", head="l1h0")
        assert page.query_params == {"model": "m", "head": "l1h0"}
        assert [one.label for one in page.button] == ["Previous L0H3", "Next L1H1"]
        healthy(page.button[0].click().run())
        assert page.query_params == {"model": "m", "head": "L0H3"}
        assert page.text_input[0].value == "L0H3"
        page.query_params["head"] = "l1h0"
        assert healthy(page.run()).text_input[0].value == "l1h0"
        last = open_page("head", model="m", head="L2H3").button
        assert [one.disabled for one in last] == [False, True]

    @pytest.mark.usefixtures("made")
    @pytest.mark.parametrize(
        ("model", "head", "reason"),
        [
            ("nope", "L0H0", "the catalog has no model 'nope'"),
            ("m", "L9H0", "and no L9H0"),
            ("m", "5.3", "'5.3' is no head"),
            ("m", "", "'' is no head"),
        ],
    )
    def test_what_is_not_there_is_said(
        self, open_page: Open, model: str, head: str, reason: str
    ) -> None:
        page = open_page("head", model=model, head=head)
        assert page.selectbox[0].value == model
        assert reason in page.error[0].value.replace("\\", "")
        assert not page.dataframe

    @pytest.mark.usefixtures("made")
    def test_an_unmeasured_model_names_the_commands(self, open_page: Open) -> None:
        page = open_page("head", model="org/bare", head="L0H0")
        told = " ".join(one.value for one in page.info)
        for command in (
            "`heads ingest MODEL`",
            "`heads ingest MODEL --suite salient`",
            "`heads patterns MODEL --heads L0H0 --prompt TEXT`",
        ):
            assert command in told

    def test_no_catalog_and_no_model(self, open_page: Open, tmp_path: Path) -> None:
        assert "heads ingest MODEL" in open_page("head").error[0].value
        catalogs.make(tmp_path, {})
        assert "`heads ingest MODEL`" in open_page("head").info[0].value

    def test_hostile_names_are_text(self, open_page: Open, tmp_path: Path) -> None:
        hostile = "![x](https://example.org/x.png) <b>" + "x" * 10_000
        one = catalogs.make(tmp_path, {})
        publish(one, begin(one, of=model(hostile)), uniform(0.5))
        page = open_page("head", model=hostile, head="L0H0")
        assert not page.markdown
        assert all("![x]" not in caption.value for caption in page.caption)


class TestOverview:
    @pytest.mark.usefixtures("made")
    def test_totals_models_coverage_and_runs(self, open_page: Open) -> None:
        page = open_page("overview")
        assert {one.label: one.value for one in page.metric} == {
            "Models": "3",
            "Heads": "28",
            "Scores": "24",
            "Metrics": "1",
            "Labels": "0",
            "Stored patterns": "1",
        }
        models, coverage, runs = (one.value for one in page.dataframe)
        assert set(models["model"]) == {"m", "n", "org/bare"}
        assert "category_map?model=org%2Fbare" in set(models["map"])
        measured = coverage.set_index("model") != ""
        assert measured.loc["m"].to_dict() == dict.fromkeys(
            ["patterns", "salient", "stored_patterns", "weights"], True
        )
        assert not measured.loc["org/bare"].any()
        assert len(runs) == 5
        assert not page.markdown

    @pytest.mark.usefixtures("made")
    @pytest.mark.parametrize(
        ("asked", "left"),
        [
            ({"architecture": "gpt2"}, {"n"}),
            ({"organisation": "org"}, {"org/bare"}),
            ({"organisation": "(none)"}, {"m", "n"}),
            ({"size": "1B to 10B"}, {"n"}),
            ({"size": ["unknown", "1B to 10B"], "architecture": "llama"}, {"m"}),
            ({"added from": "2001-01-31"}, {"m", "n", "org/bare"}),
        ],
    )
    def test_filters_are_links(
        self, open_page: Open, asked: dict[str, str | list[str]], left: set[str]
    ) -> None:
        page = open_page("overview", **asked)
        assert set(page.dataframe[0].value["model"]) == left
        assert set(page.dataframe[1].value["model"]) == left
        assert page.query_params == asked

    @pytest.mark.usefixtures("made")
    def test_nothing_left(self, open_page: Open) -> None:
        page = open_page("overview", **{"added to": "2001-01-31"})
        assert "take a choice away" in page.info[0].value
        assert len(page.dataframe) == 1

    @pytest.mark.usefixtures("made")
    def test_choices_are_mirrored_and_going_back_takes_them_away(self, open_page: Open) -> None:
        page = open_page("overview")
        healthy(page.multiselect[0].set_value(["gpt2"]).run())
        assert page.query_params == {"architecture": "gpt2"}
        page.query_params.clear()
        healthy(page.run())
        assert len(page.dataframe[0].value) == 3
        assert page.query_params == {}

    @pytest.mark.usefixtures("made")
    def test_names_that_are_not_there_are_reported(self, open_page: Open) -> None:
        page = open_page("overview", architecture="?", **{"added from": "soon"})
        assert [one.value.replace("\\", "") for one in page.error] == [
            "the catalog has no architecture '?'",
            "added from must be a day such as 2026-01-31, got 'soon'",
        ]
        assert len(page.dataframe[0].value) == 3

    def test_an_empty_catalog_names_the_command(self, open_page: Open, tmp_path: Path) -> None:
        assert "heads ingest MODEL" in open_page("overview").error[0].value
        catalogs.make(tmp_path, {})
        assert "`heads ingest MODEL`" in open_page("overview").info[0].value


class TestMap:
    def test_the_form_opens_a_head(self, open_page: Open, tmp_path: Path) -> None:
        catalogs.make(tmp_path, {"m": (2, 3)}, [("m", 0, 0, "function", "Knowledge")])
        page = open_page("category_map", model="m")
        page.text_input[0].set_value("5")
        healthy(page.button[0].click().run())
        assert "is no head" in page.error[0].value
        page.text_input[0].set_value("l1h2")
        healthy(page.button[0].click().run())
        assert page.title[0].value == "Head"
        assert page.query_params == {"model": "m", "head": "L1H2"}

    def test_back_from_a_head_the_map_is_as_it_was(self, open_page: Open, tmp_path: Path) -> None:
        labels = [(name, 0, 0, "function", "Knowledge") for name in "mn"]
        catalogs.make(tmp_path, {"m": (2, 3), "n": (2, 3)}, labels)
        page = open_page("category_map", model=["n", "m"], taxonomy="function")
        page.text_input[0].set_value("L1H2")
        healthy(page.button[0].click().run())
        # Where the browser's back button leads: what st.switch_page leaves in the history.
        trace = {"model": "n", "head": "L1H2"}
        page.query_params.update(trace)
        healthy(page.switch_page("site/category_map.py").run())
        assert page.multiselect[0].value == ["n", "m"]
        assert page.query_params == trace
        healthy(page.multiselect[0].set_value(["m"]).run())
        assert page.query_params == {"model": "m", "taxonomy": "function"}
