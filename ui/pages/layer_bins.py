"""Page: how many heads of each label lie in equal bins of layers."""

import streamlit as st

from ui import charts
from ui.pages import _parts

MAX_BINS = 16

with _parts.opened("layer_bins", "Layer bins") as page:
    chosen = page.choose()
    frame, taxonomy, labels = chosen.frame, chosen.taxonomy, chosen.labels
    bins = page.choose_number("bins", lower=1, upper=MAX_BINS, default=charts.DEFAULT_BINS)
    chart = charts.layer_bins(frame, taxonomy=taxonomy, labels=labels, bins=bins)
    st.altair_chart(chart, width="content")
    _parts.cite(chosen)
    counts = charts.bin_counts(frame, taxonomy=taxonomy, labels=labels, bins=bins)
    _parts.table(counts.drop(columns=["start", "stop"]), share_of="the bin's labelled heads")
    _parts.download(counts, "layer_bins.csv")
