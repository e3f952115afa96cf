"""Heads counted in bins of layers, and their bars."""

import re
from pathlib import Path
from typing import Any

import catalogs
import pandas as pd
import pytest
from drawing import color_scale, drawn, heads, published

from catalog.errors import UsageError
from ui import charts

PUBLISHED_SHARES = (
    (21.2, 66.7, 12.1),
    (36.4, 48.5, 12.1, 3.0),
    (8.8, 79.4, 8.8, 2.9),
    (55.9, 26.5, 17.6),
)
"""GPT-2 xl per bin, by `catalogs.VERDICTS`: percentages as in the published figure."""


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
