"""Page: any metric as map, distribution, against another, by depth, and as a ranked list."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from catalog import Catalog, explore, scored
from catalog.explore import Filter, Measured, View
from ui import charts
from ui.site import _choosing, _page, _parts, _scores
from ui.site._answers import connect
from ui.site._texts import plain

MAP, DISTRIBUTION, AGAINST, DEPTH, RANKING = VIEWS = (
    "map",
    "distribution",
    "against another",
    "by depth",
    "ranking",
)
RANKED = 100
_UP, _DOWN = "smallest first", "largest first"


def show_map(
    page: _page.Page, catalog: Catalog, models: Sequence[str], one: _choosing.Chosen
) -> None:
    is_stretched = page.choose_flag(
        "stretch", label="Colours from the smallest score to the largest"
    )
    lower, upper = (None, None) if is_stretched else (one.lower, one.upper)
    frame = scored.values(catalog, models, one.metric, one.probe).pandas()
    _parts.figure(
        charts.metric_map(frame, title=one.title, lower=lower, upper=upper),
        frame,
        "metric_map",
        code=f"{_choosing.IMPORT}\n{_scores.read(models, one)}\n"
        f"chart = charts.metric_map(frame, title={one.title!r}, lower={lower}, upper={upper})",
        command=_scores.command("metric", models, one, *(["--stretch"] if is_stretched else [])),
        alt_text=f"Layer by head, coloured by {one}, of {', '.join(models)}",
    )


def show_against(
    page: _page.Page,
    catalog: Catalog,
    models: Sequence[str],
    one: _choosing.Chosen,
    there: Sequence[dict[str, Any]],
) -> None:
    other = _choosing.choose_metric(page, there, before="against ")
    against = (other.metric, other.probe)
    frame = scored.values(catalog, models, one.metric, one.probe, against=against).pandas()
    selected = _parts.figure(
        charts.metric_scatter(frame, x=one.title, y=other.title),
        frame,
        "scatter",
        code=f"{_choosing.IMPORT}\n"
        f"frame = scored.values(\n    heads, {models!r}, {one.metric!r}, {one.probe!r}, "
        f"against={against!r}\n).pandas()\n"
        f"chart = charts.metric_scatter(frame, x={one.title!r}, y={other.title!r})",
        command=_scores.command(
            "scatter", models, one, "--against", other.metric, "--against-probe", other.probe
        ),
        alt_text=f"Heads by {one} and {other}, of {', '.join(models)}",
        key="scatter",
    )
    carry(models, one, other, frame, selected.get(charts.BRUSH) or {})


def carry(
    models: Sequence[str],
    one: _choosing.Chosen,
    other: _choosing.Chosen,
    frame: pd.DataFrame,
    brush: Mapping[str, Sequence[float]],
) -> None:
    """A link to the dragged rectangle's heads."""
    if not {"x", "y"} <= set(brush):
        st.caption("Drag over the points to select heads, and see them on the page Heads.")
        return
    # Two scores may be one, and then have one pair of limits: the narrower.
    limits: dict[str, tuple[float, float]] = {}
    is_within = pd.Series(data=True, index=frame.index)
    for chosen, axis, column in ((one, "x", "value"), (other, "y", "against")):
        lower, upper = sorted(float(end) for end in brush[axis])
        least, most = limits.get(str(chosen), (lower, upper))
        limits[str(chosen)] = (max(lower, least), min(upper, most))
        is_within &= frame[column].between(lower, upper)
    asked: dict[str, Any] = {"model": models, "range": list(limits)}
    for name, (lower, upper) in limits.items():
        asked |= {f"{name} from": lower, f"{name} to": upper}
    st.link_button(
        f"{int(is_within.sum()):,} selected heads on the page Heads",
        f"heads?{urlencode(asked, doseq=True)}",
        icon=":material/table:",
    )


def show_depth(
    page: _page.Page, catalog: Catalog, models: Sequence[str], one: _choosing.Chosen
) -> None:
    bins_place, all_place = st.columns([1, 3])
    with bins_place:
        bins = page.choose_number("bins", lower=2, upper=50, default=scored.DEPTH_BINS)
    with all_place:
        with_all = page.choose_flag("all models", label="Beside all models of the catalog together")
    _scores.show_depth(catalog, models, one, bins=bins, with_all=with_all)
    st.caption(
        "Lines are means; within a band lies the middle half of a bin's heads. "
        "Models of one layer have no depth."
    )


def show_ranking(
    page: _page.Page, catalog: Catalog, models: Sequence[str], one: _choosing.Chosen
) -> None:
    direction = page.choose_one("direction", [_DOWN, _UP], default=_DOWN)
    score = Measured(one.metric, one.probe)
    view = View(Filter(models=models), [score], score, descending=direction == _DOWN)
    frame = explore.heads(catalog, view, limit=RANKED).pandas()
    column = explore.column(view, score)
    ranked = frame.dropna(subset=column)[["model", "name", column, "labels", "depth"]]
    which = f"The first {RANKED}" if len(ranked) == RANKED else f"All {len(ranked)}"
    st.caption(f"{which} heads for which it is defined")
    st.dataframe(
        _parts.with_addresses(ranked.fillna({"labels": ""})),
        hide_index=True,
        column_config={
            "name": _parts.head_column(),
            "depth": st.column_config.NumberColumn(format="%.3f"),
            column: st.column_config.NumberColumn(str(one), format="%.4f"),
        },
    )
    asked = {"show": str(one), "order": str(one), "direction": direction}
    st.link_button("All models on the page Heads", f"heads?{urlencode(asked)}")


with _page.opened("metrics", "Metrics") as page:
    catalog = connect()
    there = scored.choices(catalog).rows()
    if not there:
        raise _page.NothingToShowError(
            "Nothing is measured of any model yet. Measure one with `heads ingest MODEL`."
        )
    one = _choosing.choose_metric(page, there)
    models_place, view_place = st.columns([3, 1])
    with models_place:
        names = scored.models_with(catalog, one.metric, one.probe)
        models = page.choose_several("model", names, default=names[:1], at_most=_page.MAX_MODELS)
    with view_place:
        view = page.choose_one("view", VIEWS, default=MAP)
    if view == MAP:
        show_map(page, catalog, models, one)
    elif view == DISTRIBUTION:
        _scores.show_distribution(catalog, models, one)
    elif view == AGAINST:
        show_against(page, catalog, models, one, there)
    elif view == DEPTH:
        show_depth(page, catalog, models, one)
    else:
        show_ranking(page, catalog, models, one)
    st.caption(plain(one.about))
