"""Page: how much attention whole layers give to classes of tokens, models side by side."""

import shlex
from collections.abc import Mapping

import streamlit as st

from catalog import queries
from ui import charts
from ui.site import _page, _parts
from ui.site._answers import connect
from ui.site._texts import plain

USUAL_PROBE = "markdown"
MAX_LAYERS = 12


def usual_models(probes: Mapping[str, set[str]]) -> list[str]:
    """The first model, and the first beside it that is measured on a probe of its."""
    first, *others = probes
    return [first, *[one for one in others if probes[one] & probes[first]][:1]]


with _page.opened("token_classes", "Token classes") as page:
    catalog = connect()
    choices = queries.token_choices(catalog).rows()
    if not choices:
        raise _page.NothingToShowError(
            "Attention to classes of tokens is not measured of any model yet. "
            "Measure it with `heads ingest MODEL --suite patterns`."
        )
    measured: dict[str, set[str]] = {}
    for row in choices:
        measured.setdefault(row["model"], set()).add(row["probe"])
    models_place, probe_place, unit_place = st.columns([3, 1, 1])
    with models_place:
        models = page.choose_several(
            "model", list(measured), default=usual_models(measured), at_most=_page.MAX_MODELS
        )
    # What all of them have, so that bars that stand together can be compared.
    probes = sorted(set.intersection(*(measured[name] for name in models)))
    if not probes:
        raise _page.NothingToShowError(
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
    shown = frame[frame["layer"].isin(numbers) & frame["class"].isin(classes)]
    chosen = ["--layers", ",".join(map(str, numbers)), "--classes", ",".join(classes)]
    _parts.figure(
        chart,
        shown,
        "token_classes",
        code=f"frame = queries.token_totals(heads, {models!r}, {probe!r}).pandas()\n"
        f"chart = charts.token_bars(frame, unit={unit!r}, layers={numbers}, classes={classes!r})",
        command=shlex.join(["tokens", *models, "--probe", probe, "--unit", unit, *chosen]),
        alt_text=f"Attention to classes of tokens per layer, of {', '.join(models)}",
    )
    st.caption(
        f"Metric token_mass on the probe {plain(probe)}: the mean attention that a query "
        "gives to keys of the class, summed or averaged over the heads of a layer that have a "
        "score. After arXiv:2512.24532."
    )
    st.dataframe(shown.drop(columns="n_layers"), hide_index=True, width="content")
