"""The pattern grid: each head's attention on a prompt as one small heatmap, model under model."""

import math

import altair as alt
import pandas as pd

from catalog.errors import UsageError
from ui.charts import _figure

COLUMNS = ("model", "name", "query", "key", "query_token", "key_token", "value")

_MOST_COLUMNS = 8
_PANEL_PIXELS = 112
_CELL_LIMITS = (1, 12)
_SPACING = 12
# ColorBrewer's Blues, from nearly white to nearly black.
_COLORS = (
    "#f7fbff",
    "#deebf7",
    "#c6dbef",
    "#9ecae1",
    "#6baed6",
    "#4292c6",
    "#2171b5",
    "#08519c",
    "#08306b",
)
_FRAME = "#c8c8c8"
# Elements of SVG with which a browser is still quick.
_MOST_CELLS_AS_SVG = 2000


def pattern_grid(
    frame: pd.DataFrame, *, pixels: int = _PANEL_PIXELS, across: int | None = None
) -> alt.VConcatChart:
    """One heatmap per head, query down and key across, in the order of the frame.

    The models stand one under the other, each with its own heads; one scale of colours, from
    attention 0 to 1, holds for all. Keys after their query, which no head can attend to, are blank.

    Args:
        frame: As `catalog.patterns.cells(...).pandas()` gives it: a row for each head, query and
            key; the heads of a model on one prompt, or on a part of it.
        pixels: Side of a heatmap, about.
        across: How many stand side by side; as `columns` says where None.

    Raises:
        UsageError: If a column is missing, or there is no pattern at all.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UsageError(f"the frame of patterns lacks the column {', '.join(missing)}")
    if frame.empty:
        raise UsageError("there is no pattern to draw; `heads patterns` stores some")
    grids = [_grid(part, pixels, across) for _, part in frame.groupby("model", sort=False)]
    figure: alt.VConcatChart = (
        alt.vconcat(*grids, spacing=28)
        .resolve_scale(color="shared")
        .configure_view(stroke=_FRAME)
        .configure_axis(grid=False)
        .configure_concat(spacing=_SPACING)
    )
    if len(frame) > _MOST_CELLS_AS_SVG:
        figure.usermeta = {"embedOptions": {"renderer": "canvas"}}
    return figure


def columns(panels: int) -> int:
    """How many heads stand side by side: up to 8 in one row, more in a square of at most 8."""
    return panels if panels <= _MOST_COLUMNS else min(_MOST_COLUMNS, math.ceil(math.sqrt(panels)))


def colors() -> list[str]:
    """Of attention 0 to 1, evenly spaced; between two of them colours are mixed."""
    return list(_COLORS)


def shown(position: int, token: str) -> str:
    """A token as a tooltip shows it: its place, and its spaces and line ends to be seen."""
    return f"{position}: {token!r}"


def _grid(cells: pd.DataFrame, pixels: int, across: int | None) -> alt.ConcatChart:
    heads = [part for _, part in cells.groupby("name", sort=False)]
    across = across or columns(len(heads))
    tokens = cells.drop_duplicates("query").sort_values("query")
    texts = alt.InlineData(
        values=[
            {"position": int(position), "token": shown(position, token)}
            for position, token in zip(tokens["query"], tokens["query_token"], strict=True)
        ]
    )
    cell = _cell(len(tokens), pixels)
    grid: alt.ConcatChart = alt.concat(
        *(_panel(part, texts, cell) for part in heads), columns=across
    ).properties(
        title=_figure.title(str(cells["model"].iloc[0]), (cell * len(tokens) + _SPACING) * across)
    )
    return grid


def _panel(cells: pd.DataFrame, texts: alt.InlineData, cell: int) -> alt.Chart:
    # Short names and no text in the rows: there are a hundred thousand of them.
    rows = pd.DataFrame(
        {"q": cells["query"], "k": cells["key"], "v": cells["value"].astype(float).round(4)}
    )
    positions = list(range(int(cells["query"].min()), int(cells["query"].max()) + 1))
    panel: alt.Chart = (
        alt.Chart(_figure.inline(rows))
        .mark_rect(aria=False)
        .transform_lookup("q", alt.LookupData(texts, "position", ["token"]), as_=["query"])
        .transform_lookup("k", alt.LookupData(texts, "position", ["token"]), as_=["key"])
        .encode(
            x=alt.X("k:O").axis(None).scale(domain=positions),
            y=alt.Y("q:O").axis(None).scale(domain=positions),
            color=alt.Color("v:Q")
            .scale(domain=[0, 1], range=list(_COLORS), clamp=True)
            .legend(alt.Legend(title="Attention", format=".1f", gradientLength=_PANEL_PIXELS)),
            tooltip=[
                alt.Tooltip("query:N", title="Query"),
                alt.Tooltip("key:N", title="Key"),
                alt.Tooltip("v:Q", title="Attention", format=".4f"),
            ],
        )
        # A whole number of pixels: cells of fractional size show seams between them.
        .properties(
            width=alt.Step(cell),
            height=alt.Step(cell),
            title=alt.TitleParams(str(cells["name"].iloc[0]), fontSize=11, offset=3),
        )
    )
    return panel


def _cell(tokens: int, pixels: int) -> int:
    """Pixels of a cell's side."""
    smallest, largest = _CELL_LIMITS
    return min(max(pixels // tokens, smallest), largest * pixels // _PANEL_PIXELS)
