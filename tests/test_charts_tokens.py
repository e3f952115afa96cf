"""Bars of attention to classes of tokens."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import pytest
from drawing import color_scale

from catalog.errors import UsageError
from ui import charts


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
