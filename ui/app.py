"""The page's frame: `heads ui` serves this file (`server.py`)."""

import streamlit as st

from ui.site import _access

st.set_page_config(page_title="Head Catalog", layout="wide")
page = st.navigation(
    [
        st.Page("site/overview.py", title="Overview", default=True),
        st.Page("site/category_map.py", title="Category map"),
        st.Page("site/layer_bins.py", title="Layer bins"),
        st.Page("site/patterns.py", title="Patterns"),
        st.Page("site/token_classes.py", title="Token classes"),
        st.Page("site/heads.py", title="Heads"),
        st.Page("site/metrics.py", title="Metrics"),
        st.Page("site/compare.py", title="Compare"),
        st.Page("site/head.py", title="Head"),
        st.Page("site/jobs.py", title="Jobs"),
        st.Page("site/sql.py", title="SQL"),
    ],
    position="top",
)
if _access.admit():
    page.run()
