"""Colours of categories: the published ones where a taxonomy has them, stable ones elsewhere."""

import colorsys
import math
import zlib
from collections.abc import Iterable, Iterator

UNCLASSIFIED = "Unclassified"
UNCLASSIFIED_COLOR = "#d3d3d3"

_MULTIPLE = {
    2: ("2 categories", "#9467bd"),
    3: ("3 categories", "#8c564b"),
    4: ("4 categories", "#e377c2"),
    5: ("5 or more categories", "#3d3d3d"),
}
MULTIPLE_COLORS = dict(_MULTIPLE.values())
"""Of heads with several labels, by how many; in order."""

_PUBLISHED = {
    "function": {
        "Algorithmic": "#1f77b4",
        "Knowledge": "#ff7f0e",
        "Linguistic": "#2ca02c",
        "Translation": "#d62728",
    },
    "description_verdict": {
        "described, plausible": "#1a7a37",
        "rightly called unclear": "#a5d96a",
        "described, implausible": "#e0433a",
        "pattern missed": "#7f1018",
    },
}
# Without the greys, purples, browns and pinks, which stand for none and for several labels. The
# first seven are told apart by colour-blind readers, also from purple and from the lightest grey.
_CATEGORICAL = (
    "#004488",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#88ccee",
    "#f0e442",
    "#882255",
    "#17becf",
    "#ff9896",
    "#98df8a",
    "#bcbd22",
    "#aec7e8",
)
_GOLDEN_RATIO = 0.618
_CLASSES = {
    "hash": "#0072b2",
    "star": "#e69f00",
    "whitespace": "#b3b3b3",
    "newline": "#56b4e9",
    "punctuation": "#cc79a7",
    "digit": "#009e73",
    "special": "#d55e00",
}
# Okabe and Ito 2008 without black, which a dark page hides; a grey and a brown beside them.
_MODELS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
    "#999999",
    "#8c564b",
    "#f0e442",
)


def label_colors(taxonomy: str, labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label of a taxonomy, in the order of legends and of stacked bars.

    Args:
        taxonomy: `function` and `description_verdict` have published colours, and all their
            labels are in the answer; any other takes colours in the order of its sorted labels.
        labels: The labels in use; give those of the whole catalog, and a label keeps its colour
            whichever models are drawn.

    Returns:
        label -> '#rrggbb'; no two labels share a colour.
    """
    published = _PUBLISHED.get(taxonomy, {})
    free = (color for color in _unlimited() if color not in published.values())
    others = sorted(set(labels) - set(published))
    return published | dict(zip(others, free, strict=False))


def class_colors(classes: Iterable[str]) -> dict[str, str]:
    """A colour for each class of tokens, the same on every figure; class -> '#rrggbb'.

    Those of the project are told apart by colour-blind readers (Okabe and Ito 2008, and a grey for
    whitespace). A user's class has a hue that depends on its name alone.
    """
    return {name: _CLASSES.get(name) or _color_of(name) for name in classes}


def model_colors(models: Iterable[str]) -> dict[str, str]:
    """A colour for each of up to nine models by their place, told apart by colour-blind readers."""
    return dict(zip(models, _MODELS, strict=False))


def multiple(labels: int) -> str:
    """The category of a head with this many labels, at least 2."""
    return _MULTIPLE[min(labels, max(_MULTIPLE))][0]


def ink(color: str) -> str:
    """Black or white, whichever is easier to read on a colour '#rrggbb' (contrast as in WCAG)."""
    # Equal contrast with black and white: (L + 0.05)^2 = 0.05 * 1.05.
    return "black" if _luminance(color) > (0.05 * 1.05) ** 0.5 - 0.05 else "white"


def _luminance(color: str) -> float:
    # The power stands in for sRGB's piecewise curve: near enough to choose between two inks.
    linear = [math.pow(int(color[start : start + 2], 16) / 255, 2.2) for start in (1, 3, 5)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _color_of(name: str) -> str:
    digest = zlib.crc32(name.encode())
    return _hex(digest % 997 / 997, (0.3, 0.5, 0.7)[digest // 997 % 3])


def _hex(hue: float, lightness: float) -> str:
    channels = colorsys.hls_to_rgb(hue, lightness, 0.6)
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in channels)


def _unlimited() -> Iterator[str]:
    """The hand-picked colours, then hues spread by the golden ratio, which never come again."""
    yield from _CATEGORICAL
    place = 0
    while True:
        place += 1
        yield _hex(place * _GOLDEN_RATIO % 1, (0.35, 0.55, 0.72)[place % 3])
