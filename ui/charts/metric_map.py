"""The metric map: every head of a model as one cell, coloured by a score."""

import math
from typing import Final

import altair as alt
import pandas as pd

from catalog.errors import UsageError
from ui.charts import _figure

COLUMNS = ("model", "layer", "head", "name", "n_layers", "n_heads", "value")
UNDEFINED_COLOR = "#9e9e9e"
"""Of heads without a score: a grey that neither scale of colours has."""

_SEQUENTIAL: Final = "viridis"
_DIVERGING: Final = "blueorange"
_LAYER_LABEL_WIDTH = 20
_HEAD_LABEL_HEIGHT = 12
_LEGEND_PIXELS = 200
_LEGEND_CHARACTERS = 30
# The page draws SVG unless told otherwise, and slows down with that many elements.
_MOST_CELLS_AS_SVG = 2000


def metric_map(
    frame: pd.DataFrame,
    *,
    title: str,
    lower: float | None = None,
    upper: float | None = None,
) -> alt.ConcatChart:
    """Layer by head, one panel per model in the order of the frame, one scale for all.

    Colours run from `lower` to `upper`; where one is None, as far as the scores do. They diverge
    around 0 where `lower`, or without it a score, is negative. Undefined scores are grey.

    Args:
        frame: As `catalog.scored.values(...).pandas()` gives it; every head of each model.
        title: Of the legend, such as `induction on random_repeat`.
        lower: Where the colours begin.
        upper: Where they end.

    Raises:
        UsageError: If a column is missing, or there is no head at all.
    """
    _require(frame)
    ends, is_diverging = scale_ends(frame["value"], lower, upper)
    color = (
        alt.Color("value:Q")
        .scale(
            domain=[ends[0], 0, ends[1]] if is_diverging else list(ends),
            scheme=alt.SchemeParams(_DIVERGING if is_diverging else _SEQUENTIAL),
            clamp=True,
        )
        .legend(
            alt.Legend(
                title=_figure.lines(title, _LEGEND_CHARACTERS),
                gradientLength=_LEGEND_PIXELS,
                titleLimit=_figure.FIGURE_WIDTH // 2,
            )
        )
    )
    models = [part for _, part in frame.groupby("model", sort=False)]
    cell = _figure.cell(frame, len(models))
    figure = _figure.figure([_panel(part, color, cell) for part in models])
    if len(frame) > _MOST_CELLS_AS_SVG:
        figure.usermeta = {"embedOptions": {"renderer": "canvas"}}
    return figure


def difference_map(frame: pd.DataFrame, *, title: str) -> alt.ConcatChart:
    """Layer by head, coloured by how much a score differs, around 0 and as far to both sides.

    Args:
        frame: As `catalog.scored.differences(...).pandas()` gives it.
        title: Of the legend.

    Raises:
        UsageError: As `metric_map`.
    """
    _require(frame)
    most = max(_finite(frame["value"]).abs().max(), 1e-9)
    return metric_map(frame, title=title, lower=-most, upper=most)


def scale_ends(
    values: pd.Series, lower: float | None, upper: float | None
) -> tuple[tuple[float, float], bool]:
    """Where colours begin and end, and whether they diverge around 0.

    Args:
        values: Scores; NaN is undefined.
        lower: The beginning, where it is known.
        upper: The end, where it is known.
    """
    finite = _finite(values)
    begin = float(finite.min()) if lower is None else lower
    end = float(finite.max()) if upper is None else upper
    if begin < 0:
        most = max(-begin, end)
        return (-most, most), True
    # A scale needs some length.
    return (begin, end if end > begin else begin + 1), False


def _panel(heads: pd.DataFrame, color: alt.Color, cell: int) -> alt.LayerChart:
    n_layers, n_heads = int(heads["n_layers"].iloc[0]), int(heads["n_heads"].iloc[0])
    base = alt.Chart().encode(
        x=alt.X("layer:O")
        .title("Layer")
        .scale(domain=list(range(n_layers)))
        .axis(values=_figure.ticks(n_layers, cell, _LAYER_LABEL_WIDTH), labelAngle=0),
        y=alt.Y("head:O")
        .title("Head")
        .scale(domain=list(range(n_heads)))
        .axis(values=_figure.ticks(n_heads, cell, _HEAD_LABEL_HEIGHT)),
    )
    measured = heads.loc[heads["value"].notna(), ["layer", "head", "name", "value"]]
    undefined = heads.loc[heads["value"].isna(), ["layer", "head", "name"]]
    scored = base.mark_rect(aria=False).encode(
        color=color,
        tooltip=[
            alt.Tooltip("name:N", title="Head"),
            alt.Tooltip("value:Q", title="Score", format=".4f"),
        ],
    )
    grey = base.mark_rect(color=UNDEFINED_COLOR, aria=False).encode(
        tooltip=[alt.Tooltip("name:N", title="Head, undefined")]
    )
    scored.data = _figure.inline(measured)
    grey.data = _figure.inline(undefined)
    name = str(heads["model"].iloc[0])
    drawn = _figure.title(name, cell * n_layers)
    if len(undefined):
        drawn.subtitle = f"grey: undefined, {len(undefined)} of {len(heads)} heads"
    # A whole number of pixels: cells of fractional size show seams between them.
    size = alt.Step(cell)
    panel: alt.LayerChart = alt.LayerChart(layer=[scored, grey]).properties(
        width=size, height=size, title=drawn
    )
    return panel


def _require(frame: pd.DataFrame) -> None:
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UsageError(f"the frame of scores lacks the column {', '.join(missing)}")
    if frame.empty:
        raise UsageError("there is no head to draw; `heads models` lists what the catalog has")


def _finite(values: pd.Series) -> pd.Series:
    """Scores that are numbers; a single 0 where there is none."""
    there = values.dropna().astype(float)
    there = there[there.map(math.isfinite)]
    return there if len(there) else pd.Series([0.0])
