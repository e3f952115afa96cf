"""Page: two models against each other: head by head, or by depth where their layouts differ."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from catalog import Catalog, queries, scored
from ui import charts
from ui.site import _choosing, _page, _parts, _scores
from ui.site._answers import connect
from ui.site._texts import plain, short

CHANGED = 50


def usual_pair(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A model and what was tuned from it, where both are there; else the first two."""
    names = [row["model"] for row in rows]
    pairs = [
        (row["base_model"], row["model"])
        for row in rows
        if row["base_model"] in names and row["base_model"] != row["model"]
    ]
    return pairs[0] if pairs else (names[0], names[1])


def show_differences(catalog: Catalog, first: str, second: str, one: _choosing.Chosen) -> None:
    frame = scored.differences(catalog, first, second, one.metric, one.probe).pandas()
    title = f"Difference of {one.title}"
    asked = f"{first!r}, {second!r}, {one.metric!r}, {one.probe!r}"
    _parts.figure(
        charts.difference_map(frame, title=title),
        frame,
        "difference",
        code=f"{_choosing.IMPORT}\n"
        f"frame = scored.differences(heads, {asked}).pandas()\n"
        f"chart = charts.difference_map(frame, title={title!r})",
        command=shlex.join(
            ["difference", first, second, "--metric", one.metric, "--probe", one.probe]
        ),
        alt_text=f"Layer by head, coloured by {one} of {second} less that of {first}",
    )
    changed_place, labels_place = st.columns(2)
    with changed_place:
        st.subheader("Heads that changed most")
        order = frame["value"].abs().sort_values(ascending=False).index
        most = frame.loc[order].dropna(subset="value").head(CHANGED)
        st.caption(f"The first {len(most)} of {int(frame['value'].notna().sum()):,} heads")
        st.dataframe(
            most.assign(
                first=[_parts.head_address(first, name) for name in most["name"]],
                second=[_parts.head_address(second, name) for name in most["name"]],
            )[["first", "second", "before", "after", "value"]],
            hide_index=True,
            column_config={
                "first": _parts.head_column("in the first"),
                "second": _parts.head_column("in the second"),
                "before": st.column_config.NumberColumn("first", format="%.4f"),
                "after": st.column_config.NumberColumn("second", format="%.4f"),
                "value": st.column_config.NumberColumn("difference", format="%+.4f"),
            },
        )
    with labels_place:
        st.subheader("Labels gained and lost")
        changes = scored.label_changes(catalog, first, second).pandas()
        if changes.empty:
            st.info(
                "Every head has the same labels in both. `heads classify` gives labels by rule."
            )
        else:
            gained = int((changes["change"] == "gained").sum())
            st.caption(f"{gained:,} gained, {len(changes) - gained:,} lost")
            changes["name"] = [_parts.head_address(second, name) for name in changes["name"]]
            st.dataframe(
                changes.drop(columns=["layer", "head"]),
                hide_index=True,
                column_config={"name": _parts.head_column()},
            )


def show_by_depth(catalog: Catalog, first: str, second: str, one: _choosing.Chosen) -> None:
    st.caption(
        "Their layers or heads are not as many, so that no head stands for another: "
        "the models are compared by relative depth and as distributions."
    )
    depth_place, heads_place = st.columns(2)
    with depth_place:
        _scores.show_depth(catalog, [first, second], one)
    with heads_place:
        _scores.show_distribution(catalog, [first, second], one)


with _page.opened("compare", "Compare") as page:
    catalog = connect()
    layouts = {row["model"]: row for row in queries.models(catalog)}
    if len(layouts) <= 1:
        known = f"has {plain(short(*layouts))} alone" if layouts else "has none yet"
        raise _page.NothingToShowError(
            f"Comparing needs two models, and the catalog {known}. Measure more, such as what was "
            "tuned from another, with `heads ingest MODEL`."
        )
    usual = usual_pair(list(layouts.values()))
    first_place, second_place = st.columns(2)
    with first_place:
        first = page.choose_one("first", list(layouts), default=usual[0])
    with second_place:
        second = page.choose_one("second", list(layouts), default=usual[1])
    if first == second:
        raise _page.NothingToShowError("Choose two different models to see how they differ.")
    there = scored.choices(catalog, models=[first, second]).rows()
    if not there:
        raise _page.NothingToShowError(
            "Nothing is measured of both on the same probe. "
            "Measure them alike with `heads ingest MODEL`."
        )
    one = _choosing.choose_metric(page, there)
    sizes = [(layouts[name]["n_layers"], layouts[name]["n_heads"]) for name in (first, second)]
    if sizes[0] == sizes[1]:
        show_differences(catalog, first, second, one)
    else:
        show_by_depth(catalog, first, second, one)
    st.caption(plain(one.about))
