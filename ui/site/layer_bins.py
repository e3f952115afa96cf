"""Page: how many heads of each label lie in equal bins of layers."""

import shlex

import pandas as pd
import streamlit as st

from ui import charts
from ui.site import _choosing, _page, _parts
from ui.site._answers import connect

MAX_BINS = 16
USUAL_WIDTH = 12
NUMBER, WIDTH = "number", "width"
COUNTS, SHARES = "counts", "shares"


def show_counts(counts: pd.DataFrame) -> None:
    """Bins and labels as `charts.bin_counts` counts them, shares in percent."""
    st.dataframe(
        counts.drop(columns=["start", "stop"]).assign(share=100 * counts["share"]),
        hide_index=True,
        width="content",
        column_config={
            "model": st.column_config.TextColumn(width="medium"),
            "heads": st.column_config.NumberColumn("# heads"),
            "share": st.column_config.NumberColumn(
                "share of the bin's labelled heads", format="%.1f%%"
            ),
        },
    )


with _page.opened("layer_bins", "Layer bins") as page:
    chosen = _choosing.choose_labels(page, connect())
    frame, taxonomy, labels = chosen.frame, chosen.taxonomy, chosen.labels
    by_place, size_place, heights_place, _ = st.columns(4)
    with by_place:
        by = page.choose_one("bins by", [NUMBER, WIDTH], default=NUMBER)
    with size_place:
        if by == NUMBER:
            default = charts.DEFAULT_BINS
            size = page.choose_number("bins", lower=1, upper=MAX_BINS, default=default)
        else:
            upper = int(frame["n_layers"].max())
            default = min(USUAL_WIDTH, upper)
            size = page.choose_number("layers per bin", lower=1, upper=upper, default=default)
    with heights_place:
        shares = page.choose_one("heights", [COUNTS, SHARES], default=COUNTS) == SHARES
    bins, width = (size, None) if by == NUMBER else (None, size)
    chart = charts.layer_bins(
        frame, taxonomy=taxonomy, labels=labels, bins=bins, width=width, shares=shares
    )
    counts = charts.bin_counts(frame, taxonomy=taxonomy, labels=labels, bins=bins, width=width)
    divided = f"bins={size}" if by == NUMBER else f"width={size}"
    drawn = ["--bins" if by == NUMBER else "--bin-width", str(size)]
    drawn += ["--shares"] if shares else []
    _parts.figure(
        chart,
        counts,
        "layer_bins",
        code=f"frame = queries.head_labels(heads, {chosen.models!r}, {taxonomy!r}).pandas()\n"
        f"chart = charts.layer_bins(\n    frame, taxonomy={taxonomy!r}, labels={labels!r}, "
        f"{divided}, shares={shares}\n)",
        command=shlex.join(["bars", *chosen.models, "--taxonomy", taxonomy, *drawn]),
        alt_text=f"Number of heads per layer bin by label, of {', '.join(chosen.models)}",
    )
    _parts.cite(taxonomy, chosen.frame)
    show_counts(counts)
