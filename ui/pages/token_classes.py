"""Page: how much attention whole layers give to classes of tokens, models side by side."""

import streamlit as st

from catalog import connect, queries
from ui import charts
from ui.pages import _parts

USUAL_PROBE = "markdown"
MAX_LAYERS = 12

with _parts.opened("token_classes", "Token classes") as page:
    catalog = connect()
    choices = queries.token_choices(catalog).rows()
    if not choices:
        raise _parts.NothingToShowError(
            "Attention to classes of tokens is not measured of any model yet. "
            "Measure it with `heads ingest MODEL --suite patterns`."
        )
    names = list(dict.fromkeys(row["model"] for row in choices))
    models_place, probe_place, unit_place = st.columns([3, 1, 1])
    with models_place:
        models = page.choose_several("model", names, default=names[:1], at_most=_parts.MAX_MODELS)
    # What all of them have, so that bars that stand together can be compared.
    measured = {name: {row["probe"] for row in choices if row["model"] == name} for name in models}
    probes = sorted(set.intersection(*measured.values()))
    if not probes:
        raise _parts.NothingToShowError(
            "These models are measured on no probe that all of them have."
        )
    with probe_place:
        usual = USUAL_PROBE if USUAL_PROBE in probes else probes[0]
        probe = page.choose_one("probe", probes, default=usual)
    with unit_place:
        unit = page.choose_one("unit", list(charts.UNITS), default="sum")
    frame = queries.token_totals(catalog, models, probe).pandas()
    known = list(dict.fromkeys(frame["class"]))
    classes = page.choose_several(
        "class", known, default=[one for one in charts.DEFAULT_CLASSES if one in known] or known[:1]
    )
    n_layers = int(frame["n_layers"].min())
    layers = page.choose_several(
        "layer",
        [str(layer) for layer in range(n_layers)],
        default=[str(layer) for layer in charts.spread_layers(n_layers)],
        at_most=MAX_LAYERS,
    )
    numbers = sorted(int(layer) for layer in layers)
    chart = charts.token_bars(frame, unit=unit, layers=numbers, classes=classes)
    st.altair_chart(chart, width="content")
    st.caption(
        f"Metric token_mass on the probe {_parts.plain(probe)}: the mean attention that a query "
        "gives to keys of the class, summed or averaged over the heads of a layer that have a "
        "score. After arXiv:2512.24532."
    )
    shown = frame[frame["layer"].isin(numbers) & frame["class"].isin(classes)]
    st.dataframe(shown.drop(columns="n_layers"), hide_index=True, width="content")
    _parts.download(shown, "token_classes.csv")
