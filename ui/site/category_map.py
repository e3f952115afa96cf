"""Page: every head of the chosen models as one cell, coloured by its label."""

import shlex
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from catalog import queries
from ui import charts
from ui.site import _choosing, _page, _parts
from ui.site._answers import connect
from ui.site._texts import in_short, plain


def offer_head(models: Sequence[str]) -> None:
    """What a click on a cell does, for those who do not click."""
    with st.form("open a head", border=False):
        model_place, head_place, button_place, _ = st.columns(
            [3, 1, 2, 2], vertical_alignment="bottom"
        )
        model = model_place.selectbox("Model", models)
        name = head_place.text_input("Head", placeholder="L5H3")
        if button_place.form_submit_button("Open head"):
            with _page.told():
                _parts.open_head(model, "L{}H{}".format(*_page.head_of(name)))


def show_counts(counts: pd.DataFrame) -> None:
    """A row per category in the order of the legend, a column per model."""
    named = in_short(counts["model"].unique())
    cells = {
        plain(named(str(model))): [
            f"{heads:,} ({share:.1%})"
            for heads, share in zip(part["heads"], part["share"], strict=True)
        ]
        for model, part in counts.groupby("model", sort=False)
    }
    shown = pd.DataFrame(cells, index=[plain(one) for one in counts["category"].unique()])
    st.table(shown, width="content", alt="Number of heads per category and model")


with _page.opened("category_map", "Category map") as page:
    page.expect_trace("head")
    catalog = connect()
    chosen = _choosing.choose_labels(page, catalog)
    taxonomy, labels = chosen.taxonomy, chosen.labels
    declared = queries.rules(catalog, taxonomy)
    rules = page.choose_thresholds(declared)
    frame, moved, options = chosen.frame, [], []
    if rules != declared:
        metrics = [rule["metric"] for rule in rules]
        scores = queries.rule_scores(catalog, chosen.models, metrics).pandas()
        frame = charts.relabel(frame, scores, rules)
        moved = [
            f"scores = queries.rule_scores(heads, {chosen.models!r}, {metrics!r}).pandas()",
            f"frame = charts.relabel(frame, scores, {rules!r})",
        ]
        options = [
            f"--set={rule['metric']}={rule['threshold']}"
            for rule, before in zip(rules, declared, strict=True)
            if rule != before
        ]
    chart = charts.category_map(frame, taxonomy=taxonomy, labels=labels, is_clickable=True)
    clicked = _parts.figure(
        chart,
        frame,
        "category_map",
        code="\n".join(
            [
                f"frame = queries.head_labels(heads, {chosen.models!r}, {taxonomy!r}).pandas()",
                *moved,
                f"chart = charts.category_map(frame, taxonomy={taxonomy!r}, labels={labels!r})",
            ]
        ),
        command=shlex.join(["map", *chosen.models, "--taxonomy", taxonomy, *options]),
        alt_text=f"Layer by head, coloured by label, of {', '.join(chosen.models)}",
        key="map",
    )
    for place, model in enumerate(chosen.models):
        for cell in clicked.get(f"panel_{place}", []):
            _parts.open_head(model, f"L{cell['layer']}H{cell['head']}")
    offer_head(chosen.models)
    _parts.cite(taxonomy, chosen.frame)
    show_counts(charts.category_counts(frame, taxonomy=taxonomy, labels=labels))
    # Last, so that nothing moves when it comes and goes.
    if moved:
        st.caption(
            "The thresholds are those of this view alone. "
            "`heads classify --set METRIC=VALUE` gives the catalog such labels."
        )
