"""Scores of heads as distribution, against one another, and by relative depth."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from catalog.errors import UsageError
from ui.charts import _figure, palette

BRUSH = "brush"
"""The scatter's selection: an interval of `x` and one of `y`."""

_WIDTH, _HEIGHT = 640, 420
_ACROSS, _UP = 90, 60
"""Characters of a title that stand along such an axis."""

_PANEL_HEIGHT = 140
_BINS = 40
_MOST_POINTS_AS_SVG = 2000


def metric_histogram(
    frame: pd.DataFrame, *, title: str, lower: float | None = None, upper: float | None = None
) -> alt.VConcatChart:
    """How many heads have which score: one panel per model, one under the other, the same bins.

    Args:
        frame: As `catalog.scored.values(...).pandas()` gives it; undefined scores are left out.
        title: Of the axis of scores.
        lower: Where it begins; by default with the smallest score.
        upper: Where it ends; by default with the largest.

    Raises:
        UsageError: If no head has a score.
    """
    measured = _measured(frame, "value")
    begin = float(measured["value"].min()) if lower is None else lower
    end = float(measured["value"].max()) if upper is None else upper
    edges = np.histogram_bin_edges([], _BINS, (begin, end if end > begin else begin + 1))
    models = list(dict.fromkeys(frame["model"]))
    colors = palette.model_colors(models)
    panels = [
        _histogram(measured[measured["model"] == name], edges, name, colors[name], title)
        for name in models
    ]
    return _styled(alt.vconcat(*panels, spacing=18).resolve_scale(x="shared"))


def metric_scatter(frame: pd.DataFrame, *, x: str, y: str) -> alt.Chart:
    """Heads by two scores, coloured by model; those within a dragged rectangle are selected.

    Args:
        frame: As `catalog.scored.values(..., against=...).pandas()` gives it: `value` stands on
            the horizontal axis, `against` on the vertical one; heads without one are left out.
        x: Title of the horizontal axis.
        y: Title of the vertical one.

    Raises:
        UsageError: If no head has both scores.
    """
    measured = _measured(frame, "value", "against")
    colors = palette.model_colors(dict.fromkeys(frame["model"]))
    points = measured.rename(columns={"value": "x", "against": "y"})
    chart: alt.Chart = (
        alt.Chart(_figure.inline(points[["model", "name", "x", "y"]]))
        .mark_circle(size=36, opacity=0.75, aria=False)
        .encode(
            x=alt.X("x:Q").title(_figure.lines(x, _ACROSS)).scale(zero=False),
            y=alt.Y("y:Q").title(_figure.lines(y, _UP)).scale(zero=False),
            color=alt.Color("model:N")
            .scale(domain=list(colors), range=list(colors.values()))
            .legend(_legend()),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("name:N", title="Head"),
                alt.Tooltip("x:Q", title=x, format=".4f"),
                alt.Tooltip("y:Q", title=y, format=".4f"),
            ],
        )
        .add_params(alt.selection_interval(name=BRUSH))
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    if len(points) > _MOST_POINTS_AS_SVG:
        chart.usermeta = {"embedOptions": {"renderer": "canvas"}}
    styled: alt.Chart = _styled(chart)
    return styled


def depth_profile(frame: pd.DataFrame, *, title: str) -> alt.LayerChart:
    """Mean score by relative depth, one line per model, in a band of the middle half of heads.

    Args:
        frame: As `catalog.scored.depth_profile(...).pandas()` gives it.
        title: Of the axis of scores.

    Raises:
        UsageError: If there is no row.
    """
    if frame.empty:
        raise UsageError("no head of a model with several layers has such a score")
    colors = palette.model_colors(dict.fromkeys(frame["model"]))
    drawn = frame.assign(heads=frame["heads"].astype(int))
    base = alt.Chart(_figure.inline(drawn)).encode(
        x=alt.X("depth:Q").title("Relative depth (0: first layer, 1: last)").scale(domain=[0, 1]),
        color=alt.Color("model:N")
        .scale(domain=list(colors), range=list(colors.values()))
        .legend(_legend()),
    )
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q").title(_figure.lines(title, _UP)), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y("mean:Q"),
        tooltip=[
            alt.Tooltip("model:N", title="Model"),
            alt.Tooltip("depth:Q", title="Depth", format=".2f"),
            alt.Tooltip("mean:Q", title="Mean", format=".4f"),
            alt.Tooltip("low:Q", title="A quarter of heads up to", format=".4f"),
            alt.Tooltip("high:Q", title="A quarter of heads from", format=".4f"),
            alt.Tooltip("heads:Q", title="Heads"),
        ],
    )
    styled: alt.LayerChart = _styled(alt.layer(band, line).properties(width=_WIDTH, height=_HEIGHT))
    return styled


def _legend() -> alt.Legend:
    """Above the plot, where long names leave it its width."""
    return _figure.legend(orient="top", columns=2, columnPadding=24)


def _histogram(
    heads: pd.DataFrame, edges: "np.ndarray", name: str, color: str, title: str
) -> alt.Chart:
    counts, _ = np.histogram(heads["value"].clip(edges[0], edges[-1]), edges)
    bars = pd.DataFrame({"start": edges[:-1], "stop": edges[1:], "heads": counts})
    panel: alt.Chart = (
        alt.Chart(_figure.inline(bars))
        .mark_bar(color=color, binSpacing=0)
        .encode(
            x=alt.X("start:Q", bin="binned")
            .title(_figure.lines(title, _ACROSS))
            .axis(tickCount=10),
            x2=alt.X2("stop:Q"),
            y=alt.Y("heads:Q").title("# heads"),
            tooltip=[
                alt.Tooltip("start:Q", title="From", format=".4f"),
                alt.Tooltip("stop:Q", title="To", format=".4f"),
                alt.Tooltip("heads:Q", title="Heads"),
            ],
        )
        .properties(width=_WIDTH, height=_PANEL_HEIGHT, title=_figure.title(name, _WIDTH))
    )
    return panel


def _measured(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows with a number in each of the columns."""
    missing = [column for column in ("model", "name", *columns) if column not in frame.columns]
    if missing:
        raise UsageError(f"the frame of scores lacks the column {', '.join(missing)}")
    there = frame.dropna(subset=list(columns))
    if there.empty:
        raise UsageError("no head of these models has such a score; the others are undefined")
    return there


def _styled(chart: Any) -> Any:
    return chart.configure_view(strokeWidth=0).configure_axis(
        grid=True,
        gridOpacity=0.4,
        labelFontSize=11,
        titleFontSize=12,
        titleFontWeight="normal",
        titleLimit=_WIDTH,
    )
