"""Categories of heads, and the map that shows them."""

import itertools

import pandas as pd
import pytest
from drawing import color_scale, drawn, heads

from catalog.errors import UsageError
from ui import charts


class TestCategories:
    def test_one_label_several_and_none(self) -> None:
        frame = heads((1, 5), {(0, 0): ["a"], (0, 1): ["b", "a"], (0, 2): ["a", "b", "c", "d"]})
        found = charts.categorize(frame)
        assert list(found["category"]) == [
            "a",
            "2 categories",
            "4 categories",
            "Unclassified",
            "Unclassified",
        ]
        assert found["labels"][1] == ("a", "b")
        assert found["reasons"][1] == "a: human; b: human"
        assert found["reasons"][3] == ""

    def test_one_label_from_two_sources_is_one_label(self) -> None:
        frame = heads((1, 1), {(0, 0): ["a", "a"]})
        frame["source"] = ["human", "rule"]
        frame["reason"] = [None, "induction 0.5 >= 0.4"]
        found = charts.categorize(frame)
        assert list(found["category"]) == ["a"]
        assert found["reasons"][0] == "a: human; a: induction 0.5 >= 0.4 (rule)"

    def test_more_than_four_labels_have_a_category_of_their_own(self) -> None:
        found = charts.categorize(heads((1, 1), {(0, 0): list("abcdefg")}))
        assert list(found["category"]) == ["5 or more categories"]

    def test_counts_add_up_to_the_models_heads(self) -> None:
        frame = heads((2, 5), {(0, 0): ["Knowledge"], (1, 1): ["Knowledge", "Linguistic"]})
        counts = charts.category_counts(frame, taxonomy="function").set_index("category")
        assert counts["heads"].to_dict() == {
            "Algorithmic": 0,
            "Knowledge": 1,
            "Linguistic": 0,
            "Translation": 0,
            "2 categories": 1,
            "Unclassified": 8,
        }
        assert counts["share"].sum() == pytest.approx(1)

    def test_a_frame_of_another_shape_is_refused(self) -> None:
        with pytest.raises(UsageError, match="lacks the column reason"):
            charts.categorize(heads((1, 1), {}).drop(columns="reason"))
        with pytest.raises(UsageError, match="no head to draw"):
            charts.categorize(heads((1, 1), {}).iloc[:0])


class TestCategoryMap:
    def test_every_head_is_a_cell_on_the_axes_of_the_paper(self) -> None:
        chart = charts.category_map(heads((48, 25), {(3, 4): ["Knowledge"]}), taxonomy="function")
        [(panel, rows)] = drawn(chart)
        x, y = panel["encoding"]["x"], panel["encoding"]["y"]
        assert (x["field"], x["title"], x["scale"]["domain"]) == (
            "layer",
            "Layer",
            list(range(48)),
        )
        assert (y["field"], y["title"], y["scale"]["domain"]) == ("head", "Head", list(range(25)))
        assert {(row["layer"], row["head"]) for row in rows} == {
            (layer, head) for layer in range(48) for head in range(25)
        }
        assert len(rows) == 48 * 25
        assert panel["title"]["text"] == "m"

    def test_colors_are_fixed_and_the_legend_lists_what_is_possible(self) -> None:
        labels = {(0, 0): ["Knowledge"], (0, 1): ["Knowledge", "Translation"]}
        [(panel, _)] = drawn(charts.category_map(heads((1, 3), labels), taxonomy="function"))
        assert color_scale(panel) == {
            "Algorithmic": "#1f77b4",
            "Knowledge": "#ff7f0e",
            "Linguistic": "#2ca02c",
            "Translation": "#d62728",
            "2 categories": "#9467bd",
            "Unclassified": "#d3d3d3",
        }

    def test_pointing_at_a_head_tells_why(self) -> None:
        frame = heads((1, 2), {(0, 0): ["Knowledge"]})
        frame.loc[0, ["source", "reason"]] = ["rule", "relation_score[copying] 0.43 >= 0.15"]
        [(panel, rows)] = drawn(charts.category_map(frame, taxonomy="function"))
        shown = {tip["title"]: tip["field"] for tip in panel["encoding"]["tooltip"]}
        assert [rows[0][shown[title]] for title in ("Head", "Labels", "Reasons")] == [
            "L0H0",
            "Knowledge",
            "Knowledge: relation_score[copying] 0.43 >= 0.15 (rule)",
        ]
        assert rows[1][shown["Labels"]] == "\u2013"

    @pytest.mark.parametrize("layout", [(1, 1), (6, 4), (30, 9), (48, 25), (80, 64), (126, 128)])
    def test_cells_are_whole_pixels_and_the_figure_stays_usable(
        self, layout: tuple[int, int]
    ) -> None:
        [(panel, _)] = drawn(charts.category_map(heads(layout, {}), taxonomy="function"))
        cell = panel["width"]["step"]
        assert panel["height"] == panel["width"]
        assert isinstance(cell, int)
        assert 5 <= cell <= 24
        assert cell * layout[0] <= 900
        ticks = panel["encoding"]["x"]["axis"]["values"]
        assert ticks[0] == 0
        assert all(cell * (b - a) >= 20 for a, b in itertools.pairwise(ticks))

    def test_models_are_panels_in_their_order_under_one_legend(self) -> None:
        frame = pd.concat(heads((2, 2), {}, name) for name in "dbca")
        chart = charts.category_map(frame, taxonomy="function")
        assert [panel["title"]["text"] for panel, _ in drawn(chart)] == list("dbca")
        spec = chart.to_dict()
        assert spec["columns"] == 2
        assert spec["resolve"] == {"scale": {"color": "shared"}}

    def test_colors_do_not_depend_on_the_models_drawn(self) -> None:
        one = charts.category_map(
            heads((1, 1), {(0, 0): ["z"]}), taxonomy="mine", labels=["a", "m", "z"]
        )
        both = charts.category_map(
            heads((1, 2), {(0, 0): ["z"], (0, 1): ["a"]}), taxonomy="mine", labels=["a", "m", "z"]
        )
        assert color_scale(drawn(one)[0][0]) == color_scale(drawn(both)[0][0])
