"""Page: every head of the chosen models as one cell, coloured by its label."""

import streamlit as st

from ui import charts
from ui.pages import _parts

with _parts.opened("category_map", "Category map") as page:
    chosen = page.choose()
    frame, taxonomy, labels = chosen.frame, chosen.taxonomy, chosen.labels
    chart = charts.category_map(frame, taxonomy=taxonomy, labels=labels)
    st.altair_chart(chart, width="content")
    _parts.cite(chosen)
    counts = charts.category_counts(frame, taxonomy=taxonomy, labels=labels)
    _parts.table(counts, share_of="the model's heads")
    _parts.download(frame, "category_map.csv")
