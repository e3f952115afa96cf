"""What every figure shares: how panels stand together, and how their texts look."""

import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

FIGURE_WIDTH = 900
_MAP_HEIGHT = 640
_CELL_LIMITS = (3, 24)
"""Pixels for all panels of a row together, without axes and legend."""

_TITLE_CHARACTERS_NEED = 240
_MOST_LINES = 6


def columns(panels: int) -> int:
    """How many panels stand side by side."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def title(text: str, width: float) -> alt.TitleParams:
    """A model's name above its panel, cut where it would run into the next panel."""
    return alt.TitleParams(
        text=text, anchor="start", fontSize=13, limit=max(width, _TITLE_CHARACTERS_NEED), offset=6
    )


def legend(**place: Any) -> alt.Legend:
    """A legend of all labels, whatever their number; only one without an end is cut short.

    Args:
        place: Where it stands, as Altair names it; to the right unless told.
    """
    return alt.Legend(
        **place,
        title=None,
        symbolType="square",
        symbolSize=150,
        labelFontSize=12,
        labelLimit=FIGURE_WIDTH // 2,
        symbolLimit=0,
        symbolStrokeWidth=0,
        symbolOpacity=1,
    )


def lines(text: str, characters: int) -> list[str]:
    """A text in a few lines, none longer than this but for a single longer word."""
    return textwrap.wrap(
        text, characters, break_long_words=False, max_lines=_MOST_LINES, placeholder=" …"
    )


def inline(frame: pd.DataFrame) -> dict[str, Any]:
    """Rows as part of the chart, whatever their number.

    Altair refuses frames above 5,000 rows (a model of 80 x 64 heads has 5,120), and takes half a
    second to validate that many rows as `alt.InlineData`. Each step that puts charts together
    copies what is in a list, but no tuple.
    """
    return {"values": tuple(frame.to_dict("records"))}


def figure(panels: Sequence[alt.Chart | alt.LayerChart]) -> alt.ConcatChart:
    """Panels in rows, in the order given, with one legend for all."""
    # At once: each step that adds to a chart copies all of it.
    return alt.ConcatChart(
        concat=list(panels),
        columns=columns(len(panels)),
        spacing=24,
        resolve=alt.Resolve(scale=alt.ScaleResolveMap(color="shared")),
        config=alt.Config(
            view=alt.ViewConfig(strokeWidth=0),
            axis=alt.AxisConfig(
                grid=False,
                labelFontSize=11,
                titleFontSize=12,
                titleFontWeight="normal",
                titleLimit=FIGURE_WIDTH // 2,
            ),
        ),
    )


def cell(heads: pd.DataFrame, panels: int) -> int:
    """Pixels of a cell's side: one size for all panels, for the largest model among them."""
    width = FIGURE_WIDTH // columns(panels)
    smallest, largest = _CELL_LIMITS
    fitting = min(width // heads["n_layers"].max(), _MAP_HEIGHT // heads["n_heads"].max())
    return int(min(max(fitting, smallest), largest))


def ticks(count: int, cell: int, needed: int) -> list[int]:
    """Every n-th of `count` cells, n a power of two, so that numbers of `needed` pixels fit."""
    step = 1
    while step * cell < needed:
        step *= 2
    return list(range(0, count, step))
