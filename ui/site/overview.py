"""Page: which models the catalog has, what was measured of them, and what ran last."""

import math
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from catalog import Catalog, browse
from ui.site import _page
from ui.site._answers import connect

SHOWN_RUNS = 50
NONE = "(none)"
# By the number of parameters that is just too large for it.
SIZES = {
    "under 100M": 1e8,
    "100M to 1B": 1e9,
    "1B to 10B": 1e10,
    "10B to 100B": 1e11,
    "100B and more": math.inf,
}
UNKNOWN_SIZE = "unknown"


def show_totals(catalog: Catalog) -> None:
    totals = browse.totals(catalog)
    for place, (name, count) in zip(st.columns(len(totals)), totals.items(), strict=True):
        place.metric(name.replace("_", " ").capitalize(), f"{count:,}")


def size(n_params: float) -> str:
    if math.isnan(n_params):
        return UNKNOWN_SIZE
    return next(name for name, above in SIZES.items() if n_params < above)


def read_models(catalog: Catalog) -> pd.DataFrame:
    models = browse.models(catalog).pandas()
    if models.empty:
        raise _page.NothingToShowError(_page.NO_MODEL)
    return models.assign(
        architecture=models["architecture"].fillna(NONE),
        organisation=models["organisation"].fillna(NONE),
        size=[size(count) for count in models["n_params"].astype(float)],
    )


def choose(page: _page.Page, models: pd.DataFrame) -> pd.DataFrame:
    """The models that the reader wants to see."""
    *places, since_place, until_place = st.columns([3, 3, 3, 2, 2])
    wanted = pd.Series(data=True, index=models.index)
    for place, column in zip(places, ("architecture", "organisation", "size"), strict=True):
        with place:
            counts = {str(one): int(n) for one, n in models[column].value_counts().items()}
            order = [*SIZES, UNKNOWN_SIZE] if column == "size" else sorted(counts)
            chosen = page.choose_filter(
                column, {one: counts[one] for one in order if one in counts}
            )
        if chosen:
            wanted &= models[column].isin(chosen)
    days = models["added_at"].dt.date
    with since_place:
        if since := page.choose_day("added from"):
            wanted &= days >= since
    with until_place:
        if until := page.choose_day("added to"):
            wanted &= days <= until
    return models[wanted]


def address(page: str, model: str) -> str:
    return f"{page}?{urlencode({'model': model})}"


def show_models(models: pd.DataFrame) -> None:
    st.header("Models")
    shown = pd.DataFrame(
        {
            "model": models["model"],
            "map": [address("category_map", name) for name in models["model"]],
            "heads": [address("heads", name) for name in models["model"]],
            "architecture": models["architecture"],
            "parameters": models["n_params"] / 1e6,
            "layers": models["n_layers"],
            "heads a layer": models["n_heads"],
            "added": models["added_at"],
            "revision": models["revision"],
        }
    )
    columns = st.column_config
    st.dataframe(
        shown,
        hide_index=True,
        column_config={
            "model": columns.TextColumn(width="large", pinned=True),
            "map": columns.LinkColumn("category map", display_text="map"),
            "heads": columns.LinkColumn(display_text="heads"),
            "parameters": columns.NumberColumn("parameters, millions", format="%.0f"),
            "added": columns.DatetimeColumn(format="YYYY-MM-DD"),
        },
    )


def show_coverage(catalog: Catalog, models: pd.DataFrame) -> None:
    st.header("Coverage")
    measured = browse.coverage(catalog).pandas()
    if measured.empty:
        st.info("Nothing is measured yet. Measure a model with `heads ingest MODEL`.")
        return
    dates = measured.pivot_table(index="model", columns="suite", values="measured_at")
    # As texts, since a table writes "None" where there is no date.
    days = dates.reindex(models["model"]).apply(lambda one: one.dt.strftime("%Y-%m-%d")).fillna("")
    st.dataframe(
        days.reset_index(),
        hide_index=True,
        column_config={"model": st.column_config.TextColumn(width="large", pinned=True)},
    )
    st.caption(
        "The day of each suite's newest run that succeeded; `heads ingest MODEL --suite SUITE` "
        "fills a gap."
    )


def show_runs(catalog: Catalog) -> None:
    st.header("Newest runs")
    runs = browse.newest_runs(catalog, limit=SHOWN_RUNS).pandas()
    st.dataframe(
        runs.fillna({"error": "", "probe": ""}),
        hide_index=True,
        column_order=[
            "run_id",
            "started_at",
            "model",
            "suite",
            "status",
            "seconds",
            "error",
            "probe",
        ],
        column_config={
            "run_id": st.column_config.NumberColumn("run", width="small"),
            "started_at": st.column_config.DatetimeColumn("started", format="YYYY-MM-DD HH:mm"),
            "seconds": st.column_config.NumberColumn(format="%.1f"),
            "error": st.column_config.TextColumn(width="medium"),
        },
    )


with _page.opened("overview", "Overview") as page:
    catalog = connect()
    show_totals(catalog)
    models = read_models(catalog)
    chosen = choose(page, models)
    if chosen.empty:
        st.info("No model is all of this; take a choice away.")
    else:
        st.caption(f"{len(chosen):,} of {len(models):,} models")
        show_models(chosen)
        show_coverage(catalog, chosen)
    show_runs(catalog)
