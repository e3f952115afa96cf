"""The category map: every head of a model as one cell, coloured by what it is labelled."""

from collections.abc import Iterable

import altair as alt
import pandas as pd

from ui.charts import _figure, palette
from ui.charts.categories import categorize, category_colors

_LAYER_LABEL_WIDTH = 20
_HEAD_LABEL_HEIGHT = 12
# The page draws SVG unless told otherwise, and slows down with that many elements.
_MOST_CELLS_AS_SVG = 2000
_NO_VALUE = "\u2013"


def category_map(
    frame: pd.DataFrame,
    *,
    taxonomy: str,
    labels: Iterable[str] = (),
    is_clickable: bool = False,
) -> alt.ConcatChart:
    """Layer by head, one panel per model in the order of the frame.

    Args:
        frame: As `catalog.queries.head_labels` gives it: model, layer, head, name, n_layers,
            n_heads, label, source, confidence, reason; every head of each model.
        taxonomy: Name of the taxonomy; sets the colours.
        labels: Its labels in the whole catalog, for colours that do not depend on the models.
        is_clickable: Whether a click selects a cell: the panel of place n has the selection
            `panel_n` with the fields layer and head.

    Raises:
        UsageError: If a column is missing, or there is no head at all.
    """
    heads = categorize(frame)
    colors = category_colors(heads, taxonomy=taxonomy, labels=labels)
    colors |= {palette.UNCLASSIFIED: palette.UNCLASSIFIED_COLOR}
    models = [part for _, part in heads.groupby("model", sort=False)]
    cell = _figure.cell(heads, len(models))
    panels = [_panel(part, colors, cell) for part in models]
    if is_clickable:
        panels = [_clickable(panel, place) for place, panel in enumerate(panels)]
    figure = _figure.figure(panels)
    if len(heads) > _MOST_CELLS_AS_SVG:
        figure.usermeta = {"embedOptions": {"renderer": "canvas"}}
    return figure


def _panel(heads: pd.DataFrame, colors: dict[str, str], cell: int) -> alt.Chart:
    n_layers, n_heads = int(heads["n_layers"].iloc[0]), int(heads["n_heads"].iloc[0])
    values = heads[["layer", "head", "name", "category", "reasons", "scores"]].assign(
        labels=[", ".join(given) or _NO_VALUE for given in heads["labels"]],
        reasons=heads["reasons"].replace("", _NO_VALUE),
        scores=heads["scores"].astype(object).fillna(_NO_VALUE),
    )
    panel: alt.Chart = (
        alt.Chart(_figure.inline(values))
        .mark_rect()
        .encode(
            x=alt.X("layer:O")
            .title("Layer")
            .scale(domain=list(range(n_layers)))
            .axis(values=_figure.ticks(n_layers, cell, _LAYER_LABEL_WIDTH), labelAngle=0),
            y=alt.Y("head:O")
            .title("Head")
            .scale(domain=list(range(n_heads)))
            .axis(values=_figure.ticks(n_heads, cell, _HEAD_LABEL_HEIGHT)),
            color=alt.Color("category:N")
            .scale(domain=list(colors), range=list(colors.values()))
            .legend(_figure.legend()),
            tooltip=[
                alt.Tooltip("name:N", title="Head"),
                alt.Tooltip("labels:N", title="Labels"),
                alt.Tooltip("reasons:N", title="Reasons"),
                alt.Tooltip("scores:N", title="Largest scores"),
            ],
        )
        # A whole number of pixels: cells of fractional size show seams between them.
        .properties(
            width=alt.Step(cell),
            height=alt.Step(cell),
            title=_figure.title(str(heads["model"].iloc[0]), cell * n_layers),
        )
    )
    return panel


def _clickable(panel: alt.Chart, place: int) -> alt.Chart:
    clicked = alt.selection_point(name=f"panel_{place}", fields=["layer", "head"], on="click")
    return panel.mark_rect(cursor="pointer").add_params(clicked)
