"""Token-class bars: how much attention whole layers give to classes of tokens.

After figure four of arXiv:2512.24532, where '#' and '*' are cells of grids drawn in text.
"""

import textwrap
from collections.abc import Collection, Sequence

import altair as alt
import pandas as pd

from catalog.errors import UsageError
from ui.charts import _figure, palette

DEFAULT_CLASSES = ("hash", "star", "whitespace")
"""No token is in two of them, so that their segments can stand on one another."""

UNITS = {"sum": "Total attention (sum)", "mean": "Mean attention (share)"}
"""Of a layer: the sum over its heads, 0 to their number, or their mean, 0 to 1."""

_COLUMNS = ("model", "probe", "layer", "class", "total", "mean", "heads", "n_heads", "n_layers")
_VALUES = {"sum": "total", "mean": "mean"}
_DEFAULT_LAYERS = 4
_APART = (
    {"whitespace", "digit", "hash", "star", "special"},
    {"whitespace", "digit", "punctuation", "special"},
    {"newline", "special"},
)
_HEIGHT = 320
_BAR_WIDTHS = (14, 40)
_SUBTITLE_CHARACTERS = 90


def token_bars(
    frame: pd.DataFrame,
    *,
    unit: str = "sum",
    layers: Sequence[int] | None = None,
    classes: Sequence[str] = DEFAULT_CLASSES,
) -> alt.Chart:
    """A group of bars per layer, one bar per model, one segment per class.

    A token of two chosen classes counts in both their segments; the figure says so below its title
    where that can be (`overlaps`). Layers that a model has no score of have no bar.

    Args:
        frame: As `catalog.queries.token_totals` gives it, of one probe; models in its order.
        unit: A key of `UNITS`.
        layers: Which, in this order; four of the shallowest model, evenly spread, where None.
        classes: Which, the first at the top of bars and legend.

    Raises:
        UsageError: If a column is missing, the unit is unknown, or the frame has nothing of a
            layer or class, or of several probes.
    """
    _require(frame, unit)
    layers = spread_layers(int(frame["n_layers"].min())) if layers is None else list(layers)
    for column, wanted in (("layer", layers), ("class", classes)):
        _require_some(frame, column, wanted)
    colors = palette.class_colors(classes)
    chosen = frame[frame["layer"].isin(layers) & frame["class"].isin(classes)]
    drawn = chosen.assign(
        value=chosen[_VALUES[unit]],
        place=[-list(classes).index(name) for name in chosen["class"]],
        counted=[f"{a} of {b}" for a, b in zip(chosen["heads"], chosen["n_heads"], strict=True)],
    ).dropna(subset="value")
    models = list(dict.fromkeys(chosen["model"]))
    narrowest, widest = _BAR_WIDTHS
    fitting = _figure.FIGURE_WIDTH // (len(layers) * (len(models) + 1))
    columns = ["model", "layer", "class", "value", "place", "counted"]
    chart: alt.Chart = (
        alt.Chart(_figure.inline(drawn[columns]))
        .mark_bar()
        .encode(
            x=alt.X("model:N")
            .title(None)
            .scale(domain=models, paddingInner=0.15, paddingOuter=0.1)
            .axis(labelAngle=-40, labelLimit=200, domain=False, ticks=False),
            y=alt.Y("value:Q", stack="zero").title(UNITS[unit]),
            color=alt.Color("class:N")
            .scale(domain=list(colors), range=list(colors.values()))
            .legend(_figure.legend()),
            order=alt.Order("place:Q"),
            column=alt.Column("layer:O")
            .sort(layers)
            .spacing(14)
            .header(
                title=None,
                labelExpr="'Layer ' + datum.value",
                labelOrient="bottom",
                labelFontSize=12,
            ),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("layer:O", title="Layer"),
                alt.Tooltip("class:N", title="Class"),
                alt.Tooltip("value:Q", title=UNITS[unit], format=".4f"),
                alt.Tooltip("counted:N", title="Heads with a score"),
            ],
        )
        .properties(
            width=alt.Step(min(max(fitting, narrowest), widest)),
            height=_HEIGHT,
            title=alt.TitleParams(
                text=f"Attention to classes of tokens, on {frame['probe'].iloc[0]}",
                subtitle=overlaps(classes),
                anchor="start",
                fontSize=13,
                offset=10,
            ),
        )
        .configure_view(strokeWidth=0)
        .configure_axis(grid=False, labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
    )
    return chart


def spread_layers(n_layers: int) -> list[int]:
    """Four layers from the first to the last, evenly spread; all where there are fewer."""
    last = n_layers - 1
    steps = max(min(_DEFAULT_LAYERS, n_layers) - 1, 1)
    return sorted({round(place * last / steps) for place in range(steps + 1)})


def overlaps(classes: Collection[str]) -> list[str]:
    """Lines that say which of these classes can have tokens in common; none where none can.

    Of the project's, `newline` can with all but `special`, `punctuation` with `hash` and `star`.
    Of a user's nothing is known.
    """
    shared = [
        one for one in classes if any(_can_overlap(one, other) for other in classes if other != one)
    ]
    if not shared:
        return []
    text = f"A token in several of these classes counts in each: {', '.join(shared)}."
    return textwrap.wrap(text, _SUBTITLE_CHARACTERS)


def _can_overlap(a: str, b: str) -> bool:
    return not any({a, b} <= apart for apart in _APART)


def _require(frame: pd.DataFrame, unit: str) -> None:
    for column in _COLUMNS:
        if column not in frame:
            raise UsageError(
                f"the frame lacks the column {column}; give what catalog.queries.token_totals gives"
            )
    if unit not in UNITS:
        raise UsageError(f"unit {unit!r} is unknown; expected {' or '.join(UNITS)}")
    if frame.empty:
        raise UsageError("there is no attention to classes of tokens in this frame")
    probes = list(dict.fromkeys(frame["probe"]))
    if len(probes) > 1:
        raise UsageError(f"the frame is of the probes {', '.join(probes)}; give one of them")


def _require_some(frame: pd.DataFrame, column: str, wanted: Sequence[object]) -> None:
    there = set(frame[column])
    if not wanted:
        raise UsageError(f"no {column} is named; there are {_listed(there)}")
    for one in wanted:
        if one not in there:
            raise UsageError(f"nothing is measured of {column} {one}; there are {_listed(there)}")


def _listed(values: set[object]) -> str:
    return ", ".join(str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v)))
