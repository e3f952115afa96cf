"""The table of all heads, without a browser."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import catalogs
import pandas as pd
import published
import pytest
from opening import Open, healthy
from streamlit.testing.v1 import AppTest

import catalog
from ui.site import _parts

INDUCTION = "induction on plain"


@pytest.fixture
def open_page(open_page: Open) -> Open:
    return partial(open_page, "heads")


@pytest.fixture
def filled(tmp_path: Path) -> catalog.Catalog:
    """`m` of 3 layers of 4 heads with scores, and `big` of 20 layers of 10."""
    made = catalogs.make(tmp_path, {"big": (20, 10)})
    values = [[(4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
    published.publish(made, published.begin(made), values)
    labels = [("m", 2, 3, "role", "induction"), ("m", 2, 2, "role", "<b>*x*</b>")]
    catalogs.add_labels(made, tmp_path, labels)
    return made


def table(page: AppTest) -> pd.DataFrame:
    frame: pd.DataFrame = page.dataframe[0].value
    return frame


def facets(page: AppTest) -> list[str]:
    return [one.label for one in page.button if "·" in one.label]


def test_an_empty_catalog_names_the_command(open_page: Open, tmp_path: Path) -> None:
    catalogs.make(tmp_path, {})
    assert "`heads ingest MODEL`" in open_page().info[0].value


@pytest.mark.usefixtures("filled")
class TestTable:
    def test_the_first_view_is_the_whole_catalog_in_pages(self, open_page: Open) -> None:
        page = open_page()
        assert any("Heads 1 to 100 of 212" in one.value for one in page.caption)
        assert len(table(page)) == 100
        assert "big · 200" in facets(page)
        assert "induction · 1" not in facets(page)
        assert "role\\: induction · 1" in facets(page)
        page.number_input[0].set_value(3)
        assert len(table(healthy(page.run()))) == 12
        assert page.query_params["page"] == "3"

    def test_a_link_opens_the_same_view(self, open_page: Open) -> None:
        asked: dict[str, Any] = {
            "model": "m",
            "range": INDUCTION,
            f"{INDUCTION} from": "0.25",
            "order": INDUCTION,
            "direction": "largest first",
        }
        page = open_page(**asked)
        shown = table(page)
        assert list(shown["score_induction_plain"]) == [0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25]
        assert shown["name"].iloc[0] == "head?model=m&head=L2H3"
        assert shown["labels"].iloc[0] == "induction"
        again = open_page(**page.query_params)
        pd.testing.assert_frame_equal(table(again), shown)

    def test_labels_and_depth(self, open_page: Open) -> None:
        assert len(table(open_page(label="role: induction"))) == 1
        page = open_page(model="m", depth=["0.5", "1.0"], **{"none of": "role: induction"})
        assert len(table(page)) == 7
        assert page.slider[0].value == (0.5, 1.0)
        page.slider[0].set_value((0.0, 1.0))
        assert len(table(healthy(page.run()))) == 11
        assert "depth" not in page.query_params

    def test_a_facet_filters_and_filters_are_cleared(self, open_page: Open) -> None:
        page = open_page()
        facet = next(one for one in page.button if one.label == "m · 12")
        healthy(facet.click().run())
        assert len(table(page)) == 12
        assert page.query_params["model"] == "m"
        healthy(page.button[0].click().run())
        assert any("of 212" in one.value for one in page.caption)
        assert "model" not in page.query_params

    def test_limits_come_and_go(self, open_page: Open) -> None:
        page = open_page(model="m", range=INDUCTION)
        page.number_input[0].set_value(0.5)
        assert len(table(healthy(page.run()))) == 2
        assert page.query_params[f"{INDUCTION} from"] == "0.5"
        page.number_input[0].set_value(None)
        assert len(table(healthy(page.run()))) == 12
        assert f"{INDUCTION} from" not in page.query_params

    def test_the_shown_statement_gives_all_that_matches(
        self, open_page: Open, filled: catalog.Catalog
    ) -> None:
        page = open_page(range=INDUCTION, **{f"{INDUCTION} from": "0.25"})
        assert len(filled.sql(page.code[0].value)) == 7
        assert len(filled.sql(open_page().code[0].value)) == 212

    def test_all_matches_can_be_downloaded(self, open_page: Open) -> None:
        buttons = open_page().get("download_button")
        assert [cast("Any", one).label for one in buttons] == [
            "All as CSV",
            "All as Parquet",
            "All as JSON",
        ]

    def test_nothing_matches(self, open_page: Open) -> None:
        page = open_page(label="role: induction", **{"none of": "role: induction"})
        assert "No head is like that" in page.info[0].value

    def test_what_is_not_there_is_said(self, open_page: Open) -> None:
        page = open_page(model="nobody", depth=["2", "x"], order="?", range="a on b")
        shown = [one.value.replace("\\", "") for one in page.error]
        assert shown == [
            "the catalog has no model 'nobody'",
            "depth must be two numbers from 0 to 1, the smaller first",
            "the catalog has no range 'a on b'",
            "nothing is measured here of order '?'",
        ]
        assert len(table(page)) == 100


@pytest.mark.usefixtures("filled")
def test_one_round_trip_for_each_question(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = catalog.Catalog.sql

    def counted(one: catalog.Catalog, query: str, **parameters: object) -> catalog.Result:
        asked.append(query)
        return ask(one, query, **parameters)

    monkeypatch.setattr(catalog.Catalog, "sql", counted)
    open_page(show=INDUCTION, range=INDUCTION, label="role: induction")
    assert len(asked) == 3  # what there is, facets, a page of rows


def test_the_address_of_a_head_holds_any_name() -> None:
    assert _parts.head_address("a/b&c #?", "L5H3") == "head?model=a%2Fb%26c+%23%3F&head=L5H3"
