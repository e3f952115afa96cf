"""The page's frame: `heads ui` runs this file with Streamlit."""

import streamlit as st

st.set_page_config(page_title="Head Catalog", layout="wide")
st.navigation(
    [
        st.Page("pages/category_map.py", title="Category map", default=True),
        st.Page("pages/layer_bins.py", title="Layer bins"),
        st.Page("pages/token_classes.py", title="Token classes"),
    ],
    position="top",
).run()
