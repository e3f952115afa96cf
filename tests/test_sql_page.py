"""The SQL console, without a browser."""

import json
from functools import partial
from pathlib import Path

import catalogs
import pandas as pd
import published
import pytest
from opening import Open, healthy
from streamlit.testing.v1 import AppTest

import catalog
from catalog.views import VIEWS
from ui import charts

SCORES = "SELECT layer, head, value FROM scores ORDER BY layer, head"


@pytest.fixture
def filled(tmp_path: Path) -> catalog.Catalog:
    one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    return one


@pytest.fixture
def open_page(open_page: Open) -> Open:
    return partial(open_page, "sql")


def answered(page: AppTest) -> pd.DataFrame:
    assert not page.error, page.error[0].value
    frame: pd.DataFrame = page.dataframe[-1].value
    return frame


def test_no_catalog(open_page: Open) -> None:
    assert "there is no catalog" in open_page().error[0].value


@pytest.mark.usefixtures("filled")
class TestConsole:
    def test_first_view_has_the_schema_limits_and_an_example(self, open_page: Open) -> None:
        page = open_page()
        assert [one.label.split(":")[0] for one in page.expander] == list(VIEWS)
        described = [line.split(":")[0] for line in page.expander[0].text[0].value.splitlines()]
        assert described == list(VIEWS["models"].columns)
        assert "10 s" in page.caption[0].value
        assert "10,000 rows" in page.caption[0].value
        assert list(answered(page)["suite"]) == ["patterns"]

    def test_a_link_shows_the_same(self, open_page: Open) -> None:
        asked = {
            "query": SCORES,
            "chart": "heat map",
            "x": "layer",
            "y": "head",
            "colour": "value",
        }
        page = open_page(**asked)
        assert page.text_area[0].value == SCORES
        assert len(answered(page)) == 12
        assert page.query_params == asked
        [chart] = page.get("vega_lite_chart")
        spec = json.loads(chart.proto.spec)
        assert spec["mark"]["type"] == "rect"
        assert spec["encoding"]["color"]["title"] == "value"

    def test_what_is_sent_stands_in_the_address(self, open_page: Open) -> None:
        page = open_page()
        page.text_area[0].set_value(SCORES)
        [send] = [one for one in page.button if one.label == "Run"]
        healthy(send.click().run())
        assert page.query_params["query"] == SCORES
        assert len(answered(page)) == 12

    def test_every_example_is_answered(self, open_page: Open) -> None:
        page = open_page(query=SCORES)
        for label in [one.label for one in page.button if one.label != "Run"]:
            [example] = [one for one in page.button if one.label == label]
            healthy(example.click().run())
            assert not page.error
            assert page.query_params["query"] == page.text_area[0].value != SCORES

    def test_limits_are_said(self, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADS_SQL_ROWS", "5")
        page = open_page(query=SCORES)
        assert page.warning[0].value.startswith("These are the first 5 rows")
        assert len(answered(page)) == 5
        assert "5 rows" in page.caption[0].value

    def test_what_is_not_allowed_is_said_in_a_sentence(self, open_page: Open) -> None:
        page = open_page(query="DELETE FROM score")
        assert "expected a query that reads" in page.error[0].value
        page = open_page(query="SELECT *\nFROM scores\nWHERE nonsense = 1")
        assert "nonsense" in page.error[0].value
        assert "LINE 3" in page.code[0].value

    def test_nothing_asked(self, open_page: Open) -> None:
        assert "take one of the examples" in open_page(query=" ").info[0].value

    def test_an_answer_can_be_downloaded(self, open_page: Open) -> None:
        page = open_page(query=SCORES)
        labels = [one.proto.label for one in page.get("download_button")]
        assert labels == ["Download as CSV", "Download as Parquet", "Download as JSON"]

    def test_an_answer_without_rows(self, open_page: Open) -> None:
        page = open_page(query=f"SELECT * FROM ({SCORES}) s WHERE value > 9")
        assert list(answered(page).columns) == ["layer", "head", "value"]


@pytest.mark.parametrize("hostile", [catalogs.HOSTILE, "![x](https://example.org/x.png)", "a.b[0]"])
def test_hostile_texts_are_text(open_page: Open, tmp_path: Path, hostile: str) -> None:
    catalogs.make(tmp_path, {hostile: (1, 2)})
    page = open_page(query=f'SELECT model AS "{hostile}", head FROM heads', chart="bars", y="head")
    frame = answered(page)
    assert list(frame[hostile]) == [hostile, hostile]
    assert not page.markdown
    assert len(page.get("vega_lite_chart")) == 1
    page = open_page(query=f'SELECT "{hostile}" FROM heads')
    assert hostile not in page.error[0].value


FRAME = pd.DataFrame(
    {
        "a.b[0]": [1, 2, 3],
        "text": ["x", None, "z"],
        "value": [0.5, float("nan"), 1.5],
        "when": [pd.Timestamp("2026-01-01", tz="UTC"), pd.Timestamp("2026-01-02", tz="UTC"), None],
        "yes": [True, False, True],
        "list": [[1], [2], [3]],
    }
)


@pytest.mark.parametrize("kind", charts.RESULT_KINDS)
@pytest.mark.parametrize("x", FRAME.columns)
@pytest.mark.parametrize("colour", [None, "value", "text"])
def test_any_columns_are_drawn(kind: str, x: str, colour: str | None) -> None:
    chart = charts.result_chart(FRAME, kind=kind, x=x, y="value", colour=colour).to_dict()
    assert chart["encoding"]["x"]["field"] == "x"
    assert chart["encoding"]["x"]["title"] == x
    [rows] = chart["datasets"].values()
    assert [row["y"] for row in rows] == [0.5, None, 1.5]
    assert ("color" in chart["encoding"]) == (colour is not None)
    json.dumps(chart, allow_nan=False)
