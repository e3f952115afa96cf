"""Page: the heads of the whole catalog as one table."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import urlencode

import streamlit as st

from catalog import Catalog, Result, explore
from catalog.explore import Filter, Label, Measured, Range, View
from ui import formats
from ui.site import _page, _parts
from ui.site._answers import connect
from ui.site._texts import plain

ROWS = 100
MOST_FACETS = 8
TABLE_PIXELS = 640
_NAME_CHARACTERS = 60
_UP, _DOWN = "smallest first", "largest first"
_FILTERS = ("model", "architecture", "depth", "range", "label", "all of", "none of", "token")
_FORMATS: Sequence[tuple[str, str, Callable[[Result], bytes]]] = (
    ("CSV", "text/csv", formats.csv),
    ("Parquet", "application/vnd.apache.parquet", formats.parquet),
    ("JSON", "application/json", formats.json_text),
)


def choose_filter(
    page: _page.Page, there: Sequence[dict[str, str]], scores: dict[str, Measured]
) -> Filter:
    labels = {
        str(one): one
        for one in (Label(row["detail"], row["name"]) for row in there if row["kind"] == "label")
    }
    models = [row for row in there if row["kind"] == "model"]
    architectures = sorted({row["detail"] for row in models if row["detail"]})
    of_models = page.choose_any("model", sorted(row["name"] for row in models), label="Models")
    of_architectures = page.choose_any("architecture", architectures, label="Architectures")
    depth = page.choose_shares("depth", label="Depth, from the first layer to the last")
    limited = page.choose_any("range", list(scores), label="Scores within limits")
    limits = {}
    for name in limited:
        st.caption(plain(name))
        lower, upper = st.columns(2)
        with lower:
            least = page.choose_limit(f"{name} from", hint="from")
        with upper:
            most = page.choose_limit(f"{name} to", hint="to")
        limits[scores[name]] = Range(least, most)
    named = {
        name: [labels[one] for one in page.choose_any(name, list(labels), label=title)]
        for name, title in (
            ("label", "With any of these labels"),
            ("all of", "With all of these labels"),
            ("none of", "With none of these labels"),
        )
    }
    token = page.choose_line("token", label="Salient token or output contains")
    return Filter(
        models=of_models,
        architectures=of_architectures,
        depth=Range() if depth == (0, 1) else Range(*depth),
        scores=limits,
        any_of=named["label"],
        all_of=named["all of"],
        none_of=named["none of"],
        token=token,
    )


def choose_view(page: _page.Page, chosen: Filter, scores: dict[str, Measured]) -> View:
    columns_place, order_place, direction_place = st.columns([3, 2, 2])
    with columns_place:
        wanted = page.choose_any("show", list(scores), label="Scores to show")
    shown = list(dict.fromkeys([*(scores[name] for name in wanted), *chosen.scores]))
    orders: dict[str, str | Measured] = {name: name for name in explore.COLUMNS}
    orders |= {str(score): score for score in shown}
    with order_place:
        order = page.choose_one("order", list(orders), default="model")
    with direction_place:
        direction = page.choose_one("direction", [_UP, _DOWN], default=_UP)
    return View(chosen, shown, orders[order], direction == _DOWN)


def show_facets(page: _page.Page, facets: Sequence[dict[str, str]]) -> None:
    for facet in ("model", "architecture", "label"):
        with st.container(gap=None):
            show_facet(page, facet, [row for row in facets if row["facet"] == facet])


def show_facet(page: _page.Page, facet: str, rows: Sequence[dict[str, str]]) -> None:
    st.caption(f"Heads by {facet}")
    for place, row in enumerate(rows[:MOST_FACETS]):
        known = row["value"] is not None
        value = str(Label(row["taxonomy"], row["value"])) if row["taxonomy"] else row["value"]
        name = value[:_NAME_CHARACTERS] if known else "(unknown)"
        st.button(
            f"{plain(name)} · {row['heads']:,}",
            key=f"{facet} {place} of facets",
            type="tertiary",
            disabled=not known,
            on_click=page.say,
            args=(facet, value),
        )
    if len(rows) > MOST_FACETS:
        st.caption(f"and {len(rows) - MOST_FACETS:,} more, with fewer heads")


def show_heads(found: Result, view: View) -> None:
    frame = found.pandas().drop(columns=["layer", "head"]).fillna({"labels": ""})
    numbers = {
        explore.column(view, score): st.column_config.NumberColumn(str(score), format="%.4f")
        for score in view.scores
    }
    st.dataframe(
        _parts.with_addresses(frame),
        hide_index=True,
        height=TABLE_PIXELS,
        # What the reader has asked for stands where it is seen without scrolling.
        column_order=["model", "name", *numbers, "labels", "depth", "architecture"],
        column_config={
            "name": _parts.head_column(),
            "depth": st.column_config.NumberColumn(format="%.3f"),
            **numbers,
        },
    )


def _written(write: Callable[[Result], bytes], catalog: Catalog, view: View) -> bytes:
    return write(explore.all_heads(catalog, view))


def download(catalog: Catalog, view: View) -> None:
    for place, (name, media, write) in zip(st.columns(len(_FORMATS)), _FORMATS, strict=True):
        place.download_button(
            f"All as {name}",
            # Asked for when it is wanted, not at every look.
            partial(_written, write, catalog, view),
            f"heads.{name.lower()}",
            media,
            icon=":material/download:",
            on_click="ignore",
        )


with _page.opened("heads", "Heads") as page:
    catalog = connect()
    there = explore.choices(catalog).rows()
    if not any(row["kind"] == "model" for row in there):
        raise _page.NothingToShowError(
            "The catalog has no model yet. Measure one with `heads ingest MODEL`."
        )
    measured = [Measured(row["name"], row["detail"]) for row in there if row["kind"] == "score"]
    scores = {str(one): one for one in measured}
    filter_place, table_place = st.columns([1, 3], gap="large")
    with filter_place:
        # Before the widgets: a choice cannot be forgotten once its widget has been shown.
        st.button("Clear filters", on_click=partial(page.forget, _FILTERS), icon=":material/close:")
        chosen = choose_filter(page, there, scores)
    with table_place:
        view = choose_view(page, chosen, scores)
        facets = explore.facets(catalog, chosen).rows()
        matches = sum(row["heads"] for row in facets if row["facet"] == "model")
        pages = max(math.ceil(matches / ROWS), 1)
        number = page.choose_number("page", lower=1, upper=pages, default=1) if pages > 1 else 1
        found = explore.heads(catalog, view, limit=ROWS, offset=(number - 1) * ROWS)
        if not found:
            st.info("No head is like that; take a filter away.")
        else:
            first = (number - 1) * ROWS + 1
            st.caption(
                f"Heads {first:,} to {first + len(found) - 1:,} of {matches:,}, {ROWS} on a page. "
                "A head's name leads to its page."
            )
            show_heads(found, view)
            download(catalog, view)
        query = explore.statement(view).shown()
        # What a popover holds is drawn once it is opened: colouring SQL loads a megabyte.
        with st.popover("SQL of all these heads", icon=":material/database:"):
            st.code(query, language="sql", wrap_lines=True)
            st.link_button("Open on the page SQL", f"sql?{urlencode({'query': query})}")
    with filter_place:
        show_facets(page, facets)
