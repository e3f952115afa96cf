"""Any answer as bars, points or a heat map of chosen columns."""

from typing import Any, Literal

import altair as alt
import pandas as pd
from pandas.api import types

from ui.charts import _figure

BARS, POINTS, HEAT_MAP = "bars", "points", "heat map"
RESULT_KINDS = (BARS, POINTS, HEAT_MAP)

_SIZE = 480
_CELL_LIMITS = (2, 32)
"""Pixels."""

Scale = Literal["quantitative", "ordinal", "temporal", "nominal"]


def result_chart(
    frame: pd.DataFrame, *, kind: str, x: str, y: str, colour: str | None = None
) -> alt.Chart:
    """Rows as marks.

    Args:
        frame: Columns of any names; numbers, texts, times and truth values are drawn as such.
        kind: One of `RESULT_KINDS`.
        x: Column along the horizontal axis.
        y: Column along the vertical axis; of bars their length.
        colour: Column that colours marks; of a heat map the value of a cell.
    """
    # Names of columns are anything, and Vega reads dots and brackets in them.
    names = {"x": x, "y": y} | ({"colour": colour} if colour else {})
    drawn = pd.DataFrame({name: _values(frame[column]) for name, column in names.items()})
    grid = kind == HEAT_MAP
    channels: dict[str, Any] = {
        "x": alt.X(field="x", type=_scale(frame[x], discrete=kind != POINTS), title=x).axis(
            labelOverlap=True, labelAngle=0 if _is_number(frame[x]) else alt.Undefined
        ),
        "y": alt.Y(field="y", type=_scale(frame[y], discrete=grid), title=y),
        "tooltip": [
            alt.Tooltip(field=name, type=_scale(frame[column]), title=column)
            for name, column in names.items()
        ],
    }
    if colour:
        scale = alt.Scale(scheme="viridis") if _is_number(frame[colour]) else alt.Undefined
        channels["color"] = alt.Color(
            field="colour", type=_scale(frame[colour]), title=colour, scale=scale
        )
    chart = alt.Chart(_figure.inline(drawn))
    if grid:
        # A whole number of pixels: cells of fractional size show seams between them.
        width, height = (_step(drawn[name].nunique()) for name in ("x", "y"))
        mapped: alt.Chart = (
            chart.mark_rect().encode(**channels).properties(width=width, height=height)
        )
        return mapped
    mark = {BARS: chart.mark_bar, POINTS: chart.mark_point}[kind]
    encoded: alt.Chart = mark().encode(**channels).properties(width=_SIZE, height=_SIZE * 3 // 4)
    return encoded


def _step(cells: int) -> alt.Step:
    smallest, largest = _CELL_LIMITS
    return alt.Step(min(max(_SIZE // max(cells, 1), smallest), largest))


def _values(column: pd.Series) -> pd.Series:
    """Values as JSON has them; NaN and NULL are null."""
    plain = column.map(str) if not (_is_number(column) or types.is_bool_dtype(column)) else column
    return plain.astype(object).where(column.notna(), None)


def _is_number(column: pd.Series) -> bool:
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def _scale(column: pd.Series, *, discrete: bool = False) -> Scale:
    if _is_number(column):
        return "ordinal" if discrete else "quantitative"
    return "temporal" if types.is_datetime64_any_dtype(column) and not discrete else "nominal"
