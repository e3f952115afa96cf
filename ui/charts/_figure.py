"""What every figure shares: how panels stand together, and how their texts look."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

FIGURE_WIDTH = 900
"""Pixels for all panels of a row together, without axes and legend."""

_TITLE_CHARACTERS_NEED = 240


def columns(panels: int) -> int:
    """How many panels stand side by side."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def title(text: str, width: float) -> alt.TitleParams:
    """A model's name above its panel, cut where it would run into the next panel."""
    return alt.TitleParams(
        text=text, anchor="start", fontSize=13, limit=max(width, _TITLE_CHARACTERS_NEED), offset=6
    )


def legend() -> alt.Legend:
    """A legend that is never cut short, whatever the number and length of its labels."""
    return alt.Legend(
        title=None,
        symbolType="square",
        symbolSize=150,
        labelFontSize=12,
        labelLimit=0,
        symbolLimit=0,
        symbolStrokeWidth=0,
        symbolOpacity=1,
    )


def inline(frame: pd.DataFrame) -> dict[str, Any]:
    """Rows as part of the chart, whatever their number.

    Altair refuses frames above 5,000 rows (a model of 80 x 64 heads has 5,120), and takes half a
    second to validate that many rows as `alt.InlineData`.
    """
    return {"values": frame.to_dict("records")}


def figure(panels: Sequence[alt.Chart | alt.LayerChart]) -> alt.ConcatChart:
    """Panels in rows, in the order given, with one legend for all."""
    drawn: alt.ConcatChart = (
        alt.concat(*panels, columns=columns(len(panels)), spacing=24)
        .resolve_scale(color="shared")
        .configure_view(strokeWidth=0)
        .configure_axis(grid=False, labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
    )
    return drawn
