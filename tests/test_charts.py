"""Charts as values: their data, their specifications, and the files made of them."""

import itertools
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import catalogs
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from catalog.errors import UsageError
from ui import charts
from ui.charts import palette

PUBLISHED_SHARES = (
    (21.2, 66.7, 12.1),
    (36.4, 48.5, 12.1, 3.0),
    (8.8, 79.4, 8.8, 2.9),
    (55.9, 26.5, 17.6),
)
"""GPT-2 xl per bin, by `catalogs.VERDICTS`: percentages as in the published figure."""


def heads(
    layout: tuple[int, int], labels: Mapping[tuple[int, int], Sequence[str]], model: str = "m"
) -> pd.DataFrame:
    """What `queries.head_labels` gives: every head, and its labels by people without a word."""
    n_layers, n_heads = layout
    nothing: Sequence[str | None] = [None]
    rows = [
        {
            "model": model,
            "layer": layer,
            "head": head,
            "name": f"L{layer}H{head}",
            "n_layers": n_layers,
            "n_heads": n_heads,
            "label": label,
            "source": None if label is None else "human",
            "confidence": None,
            "reason": None,
            "scores": None,
        }
        for layer in range(n_layers)
        for head in range(n_heads)
        for label in labels.get((layer, head), nothing)
    ]
    return pd.DataFrame(rows)


def published() -> pd.DataFrame:
    labels = {
        (layer, head): [label] for _, layer, head, _, label in catalogs.published_labels("gpt2-xl")
    }
    return heads((48, 25), labels, "gpt2-xl")


def drawn(chart: alt.ConcatChart) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each panel's specification, and its rows."""
    spec = chart.to_dict()
    # Altair lifts data that all panels share, as a single one does with itself, to the figure.
    return [
        (panel, spec["datasets"][panel.get("data", spec.get("data"))["name"]])
        for panel in spec["concat"]
    ]


def color_scale(panel: dict[str, Any]) -> dict[str, str]:
    scale = panel["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


# How much of each colour of light reaches which: Machado, Oliveira and Fernandes 2009.
SIGHTS = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}


def _seen(color: str, sight: NDArray[Any]) -> NDArray[Any]:
    """CIELAB of '#rrggbb' as a reader with this sight has it."""
    coded = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    light = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(sight @ light, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


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


class TestPalette:
    def test_published_colors_are_there_whatever_is_in_use(self) -> None:
        assert list(charts.label_colors("function", [])) == [
            "Algorithmic",
            "Knowledge",
            "Linguistic",
            "Translation",
        ]
        assert list(charts.label_colors("description_verdict", [])) == list(catalogs.VERDICTS)

    def test_labels_beside_the_published_ones_get_colors_of_their_own(self) -> None:
        colors = charts.label_colors("function", ["Arithmetic", "Knowledge"])
        assert list(colors)[4:] == ["Arithmetic"]
        assert len(set(colors.values())) == 5

    def test_no_two_labels_share_a_color(self) -> None:
        colors = charts.label_colors("mine", [f"label {n}" for n in range(60)])
        taken = {*colors.values(), *palette.MULTIPLE_COLORS.values(), palette.UNCLASSIFIED_COLOR}
        assert len(taken) == 60 + 4 + 1
        assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in taken)

    @pytest.mark.parametrize("sight", SIGHTS)
    def test_seven_labels_are_told_apart_by_colour_blind_readers(self, sight: str) -> None:
        labels = charts.label_colors("role", map(str, range(7))).values()
        colors = [*labels, palette.MULTIPLE_COLORS["2 categories"], palette.UNCLASSIFIED_COLOR]
        seen = [_seen(color, SIGHTS[sight]) for color in colors]
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        # 2.3 is just noticeable where two colours touch; a legend stands some way off.
        assert min(apart) > 15

    def test_a_label_keeps_its_color_whatever_the_order(self) -> None:
        assert charts.label_colors("mine", "abc") == charts.label_colors("mine", "cba")

    @pytest.mark.parametrize(
        ("color", "ink"), [("#ffffff", "black"), ("#000000", "white"), ("#7f1018", "white")]
    )
    def test_ink_contrasts(self, color: str, ink: str) -> None:
        assert palette.ink(color) == ink


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


class TestBinCounts:
    def test_published_counts_and_percentages(self) -> None:
        counts = charts.bin_counts(published(), taxonomy="description_verdict", width=12)
        assert list(counts["bin"].unique()) == ["[0, 12)", "[12, 24)", "[24, 36)", "[36, 48)"]
        for number, (_, part) in enumerate(counts.groupby("start")):
            assert tuple(part["label"]) == catalogs.VERDICTS
            assert tuple(part["heads"]) == catalogs.PUBLISHED_VERDICTS[number]
            shares = [round(100 * share, 1) for share in part["share"] if share]
            assert tuple(shares) == PUBLISHED_SHARES[number]
        assert list(counts.groupby("start")["heads"].sum()) == [33, 33, 34, 34]

    def test_four_bins_are_the_default(self) -> None:
        options: dict[str, Any] = {"taxonomy": "description_verdict"}
        by_default = charts.bin_counts(published(), **options)
        pd.testing.assert_frame_equal(by_default, charts.bin_counts(published(), **options, bins=4))

    @pytest.mark.parametrize(
        ("n_layers", "options", "bins"),
        [
            (30, {}, ["[0, 8)", "[8, 16)", "[16, 24)", "[24, 30)"]),
            (5, {"bins": 4}, ["[0, 2)", "[2, 4)", "[4, 5)"]),
            (3, {"bins": 16}, ["[0, 1)", "[1, 2)", "[2, 3)"]),
            (7, {"width": 3}, ["[0, 3)", "[3, 6)", "[6, 7)"]),
            (2, {"width": 12}, ["[0, 2)"]),
        ],
    )
    def test_bins_are_equal_but_for_the_last(
        self, n_layers: int, options: dict[str, Any], bins: list[str]
    ) -> None:
        frame = heads((n_layers, 2), {(0, 0): ["Knowledge"]})
        counts = charts.bin_counts(frame, taxonomy="function", **options)
        assert list(counts["bin"].unique()) == bins

    def test_a_head_counts_once_and_only_if_labelled(self) -> None:
        frame = heads((2, 4), {(0, 0): ["a"], (0, 1): ["a", "b"], (1, 3): ["b"]})
        counts = charts.bin_counts(frame, taxonomy="mine", bins=1).set_index("label")
        assert counts["heads"].to_dict() == {"a": 1, "b": 1, "2 categories": 1}
        assert counts["share"].sum() == pytest.approx(1)

    def test_an_empty_bin_stays_and_its_shares_are_undefined(self) -> None:
        frame = heads((4, 1), {(3, 0): ["a"]})
        counts = charts.bin_counts(frame, taxonomy="mine")
        assert list(counts["heads"]) == [0, 0, 0, 1]
        assert list(counts["share"].isna()) == [True, True, True, False]

    def test_a_label_called_unclassified_is_a_label(self) -> None:
        frame = heads((1, 3), {(0, 0): ["Unclassified"]})
        counts = charts.bin_counts(frame, taxonomy="mine")
        assert list(zip(counts["label"], counts["heads"], strict=True)) == [("Unclassified", 1)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bins": 0}, "bins must be at least 1, got 0"),
            ({"width": -1}, "width must be at least 1, got -1"),
            ({"bins": 4, "width": 12}, "exclude each other"),
        ],
    )
    def test_impossible_bins_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            charts.bin_counts(published(), taxonomy="description_verdict", **options)


class TestLayerBins:
    def test_axes_and_stack(self) -> None:
        chart = charts.layer_bins(published(), taxonomy="description_verdict")
        [(panel, rows)] = drawn(chart)
        bars = panel["layer"][0]
        x, y = bars["encoding"]["x"], bars["encoding"]["y"]
        assert x["title"] == "Layers"
        assert x["scale"]["domain"] == ["[0, 12)", "[12, 24)", "[24, 36)", "[36, 48)"]
        assert y["title"] == "# heads"
        assert y["scale"]["domain"][0] == 0
        assert y["scale"]["domain"][1] >= 34
        assert list(color_scale(bars)) == list(catalogs.VERDICTS)
        first = [row for row in rows if row["bin"] == "[0, 12)"]
        assert [(row["label"], row["below"], row["above"]) for row in first] == [
            ("described, implausible", 0, 4),
            ("rightly called unclear", 4, 26),
            ("described, plausible", 26, 33),
        ]

    def test_every_percentage_is_written_in_the_drawing(self, tmp_path: Path) -> None:
        charts.save(
            charts.layer_bins(published(), taxonomy="description_verdict"), tmp_path / "bins.svg"
        )
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "bins.svg").read_text())
        written = sorted(text for text in texts if text.endswith("%"))
        assert written == sorted(f"{share}%" for bar in PUBLISHED_SHARES for share in bar)
        assert {"# heads", "Layers", "[0, 12)", "[36, 48)", "gpt2-xl", *catalogs.VERDICTS} <= set(
            texts
        )

    def test_text_too_high_for_its_segment_stands_beside_it_without_overlap(self) -> None:
        labels = {(0, head): ["c"] for head in range(500)}
        labels |= {(0, 500): ["a"], (0, 501): ["b"]}
        [(panel, rows)] = drawn(charts.layer_bins(heads((1, 600), labels), taxonomy="mine"))
        beside = sorted(row["middle"] for row in rows if row["beside"])
        assert [row["label"] for row in rows if not row["beside"]] == ["c"]
        top = panel["layer"][0]["encoding"]["y"]["scale"]["domain"][1]
        pixels_apart = (beside[1] - beside[0]) * panel["height"] / top
        assert pixels_apart >= 10

    def test_no_labelled_head_leaves_empty_axes(self, tmp_path: Path) -> None:
        chart = charts.layer_bins(heads((4, 2), {}), taxonomy="function")
        [(panel, rows)] = drawn(chart)
        assert not rows
        assert len(panel["layer"][0]["encoding"]["x"]["scale"]["domain"]) == 4
        charts.save(chart, tmp_path / "empty.png")

    def test_models_are_panels_with_bins_of_their_own(self) -> None:
        frame = pd.concat(
            [heads((48, 2), {(0, 0): ["a"]}, "big"), heads((6, 2), {(0, 0): ["a"]}, "small")]
        )
        panels = drawn(charts.layer_bins(frame, taxonomy="mine", bins=3))
        assert [panel["title"]["text"] for panel, _ in panels] == ["big", "small"]
        domains = [panel["layer"][0]["encoding"]["x"]["scale"]["domain"] for panel, _ in panels]
        assert domains == [["[0, 16)", "[16, 32)", "[32, 48)"], ["[0, 2)", "[2, 4)", "[4, 6)"]]


def totals(
    models: Mapping[str, Mapping[str, Sequence[float | None]]], n_heads: int = 2
) -> pd.DataFrame:
    """What `queries.token_totals` gives: by model and class the total of each layer."""
    rows = [
        {
            "model": model,
            "probe": "markdown",
            "layer": layer,
            "class": name,
            "total": total,
            "mean": None if total is None else total / n_heads,
            "heads": 0 if total is None else n_heads,
            "n_heads": n_heads,
            "n_layers": len(of_layers),
        }
        for model, classes in models.items()
        for name, of_layers in classes.items()
        for layer, total in enumerate(of_layers)
    ]
    return pd.DataFrame(rows)


def bars(chart: alt.Chart) -> list[tuple[str, int, str, float]]:
    """What is drawn: model, layer, class, length of the segment."""
    spec = chart.to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    return [(row["model"], row["layer"], row["class"], row["value"]) for row in rows]


TOTALS = totals(
    {
        "base": {"hash": [1.0, 0.5, None], "star": [0.25, 0.0, None], "newline": [0.5, 0.5, 0.5]},
        "tuned": {"hash": [0.75, 0.5, 0.25], "star": [0.5, 1.0, 1.5]},
    }
)


class TestTokenBars:
    def test_a_bar_per_layer_and_model_with_a_segment_per_class(self) -> None:
        chart = charts.token_bars(TOTALS, layers=[0, 2], classes=["hash", "star"])
        assert bars(chart) == [
            ("base", 0, "hash", 1.0),
            ("base", 0, "star", 0.25),
            ("tuned", 0, "hash", 0.75),
            ("tuned", 2, "hash", 0.25),
            ("tuned", 0, "star", 0.5),
            ("tuned", 2, "star", 1.5),
        ]
        spec = chart.to_dict()["encoding"]
        assert (spec["column"]["field"], spec["x"]["field"]) == ("layer", "model")
        assert spec["column"]["sort"] == [0, 2]
        assert spec["x"]["scale"]["domain"] == ["base", "tuned"]
        assert (spec["y"]["field"], spec["y"]["stack"]) == ("value", "zero")

    @pytest.mark.parametrize(
        ("unit", "title", "value"),
        [("sum", "Total attention (sum)", 1.0), ("mean", "Mean attention (share)", 0.5)],
    )
    def test_both_units_say_what_they_are(self, unit: str, title: str, value: float) -> None:
        chart = charts.token_bars(TOTALS, unit=unit, layers=[0], classes=["hash"])
        assert bars(chart)[0] == ("base", 0, "hash", value)
        assert chart.to_dict()["encoding"]["y"]["title"] == title

    def test_the_first_class_is_on_top_of_bar_and_legend(self) -> None:
        chart = charts.token_bars(TOTALS, layers=[0], classes=["star", "hash"])
        spec = chart.to_dict()
        rows = spec["datasets"][spec["data"]["name"]]
        place = {row["class"]: row["place"] for row in rows}
        # Vega stacks upwards in ascending order.
        assert place["star"] > place["hash"]
        assert list(color_scale(spec)) == ["star", "hash"]

    def test_colors_are_the_same_on_every_figure(self) -> None:
        one = charts.class_colors(["hash", "star", "mine"])
        other = charts.class_colors(["yours", "mine", "star", "whitespace"])
        assert {name: one[name] for name in ("star", "mine")} == {
            name: other[name] for name in ("star", "mine")
        }
        known = ("hash", "star", "whitespace", "newline", "punctuation", "digit", "special")
        assert len(set(charts.class_colors(known).values())) == len(known)
        assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in (*one.values(), other["yours"]))

    @pytest.mark.parametrize(
        ("n_layers", "chosen"),
        [(28, [0, 9, 18, 27]), (4, [0, 1, 2, 3]), (3, [0, 1, 2]), (1, [0]), (5, [0, 1, 3, 4])],
    )
    def test_layers_are_spread_evenly(self, n_layers: int, chosen: list[int]) -> None:
        assert charts.spread_layers(n_layers) == chosen
        frame = totals({"m": {"hash": [0.5] * n_layers}, "n": {"hash": [0.5] * (n_layers + 9)}})
        drawn_layers = {
            layer for _, layer, _, _ in bars(charts.token_bars(frame, classes=["hash"]))
        }
        assert sorted(drawn_layers) == chosen

    @pytest.mark.parametrize(
        ("classes", "told"),
        [
            (charts.DEFAULT_CLASSES, ""),
            (("hash", "star", "digit", "special", "whitespace"), ""),
            (("punctuation", "digit", "whitespace"), ""),
            (("whitespace", "newline"), "each: whitespace, newline."),
            (("punctuation", "hash", "digit"), "each: punctuation, hash."),
            (("hash", "mine"), "each: hash, mine."),
        ],
    )
    def test_what_may_count_twice_is_said(self, classes: tuple[str, ...], told: str) -> None:
        assert " ".join(charts.overlaps(classes)).endswith(told)
        assert bool(charts.overlaps(classes)) == bool(told)
        frame = totals({"m": {name: [0.5] for name in classes}})
        title = charts.token_bars(frame, classes=classes).to_dict()["title"]
        assert title["subtitle"] == charts.overlaps(classes)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"unit": "median"}, "unit 'median' is unknown; expected sum or mean"),
            ({"layers": [7]}, "nothing is measured of layer 7; there are 0, 1, 2"),
            ({"layers": []}, "no layer is named"),
            ({"classes": ["hsah"]}, "of class hsah; there are hash, newline, star"),
            ({"classes": []}, "no class is named"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(UsageError, match=reason):
            charts.token_bars(TOTALS, **{"classes": ["hash"], **options})

    def test_frames_of_another_shape_are_refused(self) -> None:
        for frame, reason in (
            (TOTALS.drop(columns="mean"), "lacks the column mean"),
            (TOTALS.iloc[:0], "no attention to classes"),
            (pd.concat([TOTALS, TOTALS.assign(probe="plain")]), "probes markdown, plain; give one"),
        ):
            with pytest.raises(UsageError, match=reason):
                charts.token_bars(frame)

    def test_the_drawing_names_models_layers_classes_and_unit(self, tmp_path: Path) -> None:
        charts.save(
            charts.token_bars(TOTALS, layers=[0, 1], classes=["hash", "star"]),
            tmp_path / "tokens.svg",
        )
        svg = (tmp_path / "tokens.svg").read_text()
        for text in ("base", "tuned", "Layer 0", "Layer 1", "hash", "star", "(sum)", "on markdown"):
            assert text in svg


class TestSave:
    @pytest.mark.parametrize(
        ("name", "start"),
        [
            ("a.png", b"\x89PNG"),
            ("a.svg", b"<svg"),
            ("a.pdf", b"%PDF-"),
            ("a.html", b"<!DOCTYPE html>"),
            ("a.PNG", b"\x89PNG"),
        ],
    )
    def test_each_format(self, tmp_path: Path, name: str, start: bytes) -> None:
        chart = charts.category_map(heads((2, 2), {}), taxonomy="function")
        charts.save(chart, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_html_needs_no_network(self, tmp_path: Path) -> None:
        charts.save(
            charts.category_map(heads((1, 1), {}), taxonomy="function"), tmp_path / "a.html"
        )
        page = (tmp_path / "a.html").read_text()
        assert not re.search(r"<(script|link)[^>]*(src|href)=", page)

    @pytest.mark.parametrize("name", ["a.eps", "a", "png"])
    def test_other_formats_are_refused(self, tmp_path: Path, name: str) -> None:
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match=r"expected \.png, \.svg, \.pdf, \.html"):
            charts.save(chart, tmp_path / name)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match="there is no folder"):
            charts.save(chart, tmp_path / "nowhere" / "a.svg")

    def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "a.svg").mkdir()
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match="cannot be written"):
            charts.save(chart, tmp_path / "a.svg")
        assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]

    @pytest.mark.parametrize(
        "name", [catalogs.HOSTILE, "</script><script>alert(1)</script>", "a.b['c']", "ü\n\\", "%s"]
    )
    def test_hostile_names_stay_text(self, tmp_path: Path, name: str) -> None:
        frame = heads((2, 2), {(0, 0): [name], (1, 1): [name, "other"]}, model=name)
        for chart in (
            charts.category_map(frame, taxonomy=name),
            charts.layer_bins(frame, taxonomy=name),
        ):
            spec = chart.to_dict()["concat"][0]
            assert spec["title"]["text"] == name
            charts.save(chart, tmp_path / "a.html")
            charts.save(chart, tmp_path / "a.svg")
            assert "<script>alert" not in (tmp_path / "a.html").read_text()
            assert "<script" not in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("module", ["ui", "ui.cli.main", "ui.launch"])
def test_readers_without_the_charts_packages_can_import(module: str) -> None:
    code = f"import sys, {module}; print({{'altair', 'streamlit', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
