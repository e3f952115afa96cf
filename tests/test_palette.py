"""Colours of categories, and whether everybody tells them apart."""

import itertools
import re
from typing import Any

import catalogs
import numpy as np
import pytest
from numpy.typing import NDArray

from ui import charts
from ui.charts import palette

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
