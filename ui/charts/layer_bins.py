"""Layer-bin bars: how many heads of each label lie in equal bins of layers."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import altair as alt
import pandas as pd

from catalog.errors import UsageError
from ui.charts import _figure, palette
from ui.charts.categories import categorize, category_colors

DEFAULT_BINS = 4

_BAR_STEPS = (64, 88)
_BAR_SHARE = 0.52
_TEXT_HEIGHT = 11
_HEIGHTS = (280, 480)
_HEADROOM = 1.04
# Reads on white paper as well as on the page's dark background.
_TEXT_BESIDE_COLOR = "#808080"


def bin_counts(
    frame: pd.DataFrame,
    *,
    taxonomy: str,
    labels: Iterable[str] = (),
    bins: int | None = None,
    width: int | None = None,
) -> pd.DataFrame:
    """Count the labelled heads in bins of equally many layers.

    A head counts once: under its label, or under `2 categories` and so on where it has several.
    Heads without a label do not count. Where the number of layers does not divide, the last bin
    is narrower, and there can be fewer bins than asked for (5 layers in 4 bins: [0, 2), [2, 4)
    and [4, 5)).

    Args:
        frame: As `catalog.queries.head_labels` gives it.
        taxonomy: Name of the taxonomy.
        labels: Its labels in the whole catalog.
        bins: Number of bins, 4 unless told.
        width: Layers of a bin, instead of their number.

    Returns:
        model, bin ('[0, 12)'), start, stop (layers, stop excluded), label, heads and share (of
        the labelled heads in the bin, 0 to 1, null where there are none). A row for every bin of
        every model and every label, in that order.

    Raises:
        UsageError: If bins or width is below 1, both are given, a column is missing, or there is
            no head at all.
    """
    heads = categorize(frame)
    order = list(category_colors(heads, taxonomy=taxonomy, labels=labels))
    return _counted(heads, order, bins, width)


def layer_bins(
    frame: pd.DataFrame,
    *,
    taxonomy: str,
    labels: Iterable[str] = (),
    bins: int | None = None,
    width: int | None = None,
    shares: bool = False,
) -> alt.ConcatChart:
    """Stacked bars of `bin_counts`, each segment with its share; one panel per model.

    A share stands in its segment, or to the right of it where the segment is thinner than text.
    Bars are as high as their heads are many, or all alike.

    Args:
        frame: As for `bin_counts`, like all the others.
        taxonomy: Name of the taxonomy; sets the colours.
        labels: Its labels in the whole catalog, for colours that do not depend on the models.
        bins: Number of bins, 4 unless told.
        width: Layers of a bin, instead of their number.
        shares: Whether heights are shares of the bin's labelled heads instead of their number.

    Raises:
        UsageError: As `bin_counts`.
    """
    heads = categorize(frame)
    colors = category_colors(heads, taxonomy=taxonomy, labels=labels)
    counts = _counted(heads, list(colors), bins, width)
    counts["high"] = counts["share"].fillna(0) if shares else counts["heads"]
    models = [part for _, part in counts.groupby("model", sort=False)]
    height = max(_height(part) for part in models)
    columns = _figure.columns(len(models))
    axis = (
        alt.Y("below:Q").title("share of labelled heads").axis(format=".0%", tickCount=5)
        if shares
        else alt.Y("below:Q").title("# heads").axis(tickMinStep=1, tickCount=6)
    )
    return _figure.figure([_panel(part, colors, axis, height, columns) for part in models])


def _counted(
    heads: pd.DataFrame, order: Sequence[str], bins: int | None, width: int | None
) -> pd.DataFrame:
    rows = []
    for model, part in heads.groupby("model", sort=False):
        labelled = part[part["labels"].astype(bool)]
        found = Counter(zip(labelled["layer"].tolist(), labelled["category"].tolist(), strict=True))
        for start, stop in _bins(int(part["n_layers"].iloc[0]), bins, width):
            counts = [sum(found[layer, label] for layer in range(start, stop)) for label in order]
            total = sum(counts)
            for label, count in zip(order, counts, strict=True):
                share = count / total if total else math.nan
                rows.append((model, f"[{start}, {stop})", start, stop, label, count, share))
    columns = ["model", "bin", "start", "stop", "label", "heads", "share"]
    return pd.DataFrame(rows, columns=columns)


def _bins(n_layers: int, bins: int | None, width: int | None) -> Iterator[tuple[int, int]]:
    if bins is not None and width is not None:
        raise UsageError(f"bins ({bins}) and width ({width}) exclude each other; give one of them")
    for name, value in (("bins", bins), ("width", width)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    step = width or -(-n_layers // (bins or DEFAULT_BINS))
    for start in range(0, n_layers, step):
        yield start, min(start + step, n_layers)


def _panel(
    counts: pd.DataFrame, colors: dict[str, str], axis: alt.Y, height: int, columns: int
) -> alt.LayerChart:
    order = list(dict.fromkeys(counts["bin"]))
    top = _top(counts)
    narrowest, widest = _BAR_STEPS
    step = min(max(_figure.FIGURE_WIDTH // columns // len(order), narrowest), widest)
    segments = pd.DataFrame(
        segment
        for _, bar in counts.groupby("start")
        for segment in _segments(bar, colors, text_height=_TEXT_HEIGHT * top / height)
    )
    base = alt.Chart(_figure.inline(segments)).encode(
        x=alt.X("bin:O")
        .title("Layers")
        .scale(domain=order, paddingInner=1 - _BAR_SHARE, paddingOuter=(1 - _BAR_SHARE) / 2)
        .axis(labelAngle=0, labelLimit=0)
    )
    bars = base.mark_bar().encode(
        y=axis.scale(domain=[0, top], nice=False),
        y2=alt.Y2("above:Q"),
        color=alt.Color("label:N")
        .scale(domain=list(colors), range=list(colors.values()))
        .legend(_figure.legend()),
        tooltip=[
            alt.Tooltip("bin:N", title="Layers"),
            alt.Tooltip("label:N", title="Label"),
            alt.Tooltip("heads:Q", title="# heads"),
            alt.Tooltip("text:N", title="Share"),
        ],
    )
    # As channels: names alone take Altair ten milliseconds each.
    texts = base.encode(y=alt.Y("middle:Q"), text=alt.Text("text:N")).mark_text(
        fontSize=10.5,
        baseline="middle",
        align=alt.ExprRef("datum.beside ? 'left' : 'center'"),
        dx=alt.ExprRef(f"datum.beside ? {step * _BAR_SHARE / 2 + 3} : 0"),
        color=alt.ExprRef("datum.ink"),
    )
    panel: alt.LayerChart = alt.LayerChart(layer=[bars, texts]).properties(
        width=step * len(order),
        height=height,
        title=_figure.title(str(counts["model"].iloc[0]), step * len(order)),
    )
    return panel


def _segments(
    bar: pd.DataFrame, colors: dict[str, str], *, text_height: float
) -> Iterator[dict[str, object]]:
    """The drawn segments of one bar, the first label on top as in the legend.

    Args:
        bar: Rows of `bin_counts` of one bin, and how `high` each is.
        colors: Of the labels.
        text_height: Of a line of text, as high as segments are.
    """
    below, lowest_free = 0.0, text_height / 2
    drawn = bar[bar["heads"] > 0].iloc[::-1]
    for place, label, heads, share, high in zip(
        *(drawn[column] for column in ("bin", "label", "heads", "share", "high")), strict=True
    ):
        middle = below + high / 2
        beside = high < text_height
        if beside:
            # Texts of neighbouring thin segments are pushed apart, upwards.
            middle = max(middle, lowest_free)
            lowest_free = middle + text_height
        yield {
            "bin": place,
            "label": label,
            "heads": heads,
            "below": below,
            "above": below + high,
            "middle": middle,
            "beside": beside,
            "text": f"{share:.1%}",
            "ink": _TEXT_BESIDE_COLOR if beside else palette.ink(colors[label]),
        }
        below += high


def _top(counts: pd.DataFrame) -> float:
    """The upper end of the axis of a panel."""
    return float(max(counts.groupby("start")["high"].sum().max(), 1)) * _HEADROOM


def _height(counts: pd.DataFrame) -> int:
    """Pixels: enough for text in the thinnest segment of a panel, within limits."""
    drawn = counts[counts["heads"] > 0]["high"]
    lowest, highest = _HEIGHTS
    wanted = _TEXT_HEIGHT * _top(counts) / drawn.min() if len(drawn) else 0
    return int(min(max(wanted + 1, lowest), highest))
