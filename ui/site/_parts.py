"""What pages show alike: figures with their data, tables, sources and links to heads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlencode

import altair as alt
import pandas as pd
import streamlit as st

from ui import charts
from ui.site._texts import plain

_OPENING = """import catalog
from catalog import queries
from ui import charts

heads = catalog.connect()  # or its URL"""


def open_head(model: str, name: str) -> NoReturn:
    """Go to a head's page."""
    st.switch_page("site/head.py", query_params={"model": model, "head": name})


def cite(taxonomy: str, frame: pd.DataFrame) -> None:
    """Say whose labels these are."""
    sources = sorted(frame["source"].dropna().unique())
    named = plain(", ".join(sources) or "none")
    text = f"Taxonomy {plain(taxonomy)}; source of the labels: {named}."
    if "rule" in sources:
        text += (
            " Labels by rule come from thresholds on published scores; the category map shows the "
            "score and threshold behind a label when you point at its head."
        )
    st.caption(text)


def figure(
    chart: alt.ConcatChart | alt.VConcatChart | alt.HConcatChart | alt.LayerChart | alt.Chart,
    data: pd.DataFrame,
    name: str,
    *,
    code: str,
    command: str | None = None,
    alt_text: str,
    key: str | None = None,
) -> Any:
    """A chart, and beside it all that a paper needs of it: picture, data and code.

    Args:
        chart: What is shown.
        data: What was drawn.
        name: Of the files, without a suffix.
        code: Lines of Python after `import catalog` and `heads = catalog.connect(...)`, which end
            with `chart` as the chart.
        command: `heads chart ...` with the same picture, up to the output.
        alt_text: What a reader who does not see it is told.
        key: Where given, what the reader selects in the chart runs the page again.

    Returns:
        What is selected, by name of the chart's selection; nothing without a key.
    """
    selected: Any = {}
    if key is None:
        st.altair_chart(chart, width="content", alt=alt_text)
    else:
        event = st.altair_chart(chart, width="content", alt=alt_text, key=key, on_select="rerun")
        selected = event["selection"]
    downloads(lambda: chart, lambda: data, name, code=code, command=command)
    return selected


def downloads(
    chart: Callable[[], alt.TopLevelMixin],
    data: Callable[[], pd.DataFrame],
    name: str,
    *,
    code: str,
    command: str | None = None,
) -> None:
    """What `figure` has beside its chart, made when it is asked for."""
    with st.popover("Download", icon=":material/download:"):
        for suffix in (".png", ".svg", ".pdf"):
            st.download_button(
                suffix[1:].upper(),
                # Drawn when it is asked for: that takes a second for a large model.
                partial(_drawn, chart, suffix),
                f"{name}{suffix}",
                on_click="ignore",
            )
        st.download_button(
            "CSV", lambda: data().to_csv(index=False), f"{name}.csv", "text/csv", on_click="ignore"
        )
        st.download_button(
            "Parquet",
            lambda: data().to_parquet(index=False),
            f"{name}.parquet",
            on_click="ignore",
        )
        st.caption("The same in Python")
        st.code(f"{_OPENING}\n{code}\ncharts.save(chart, {f'{name}.pdf'!r})", language="python")
        if command:
            st.caption("The same from a shell")
            st.code(f"heads chart {command} -o {name}.pdf", language="bash")


def _drawn(chart: Callable[[], alt.TopLevelMixin], suffix: str) -> bytes:
    return charts.render(chart(), suffix)


def head_address(model: str, head: str) -> str:
    """Where the page of a head is, from any other page."""
    return f"head?{urlencode({'model': model, 'head': head})}"


def with_addresses(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, in the place of each head's name the address of its page."""
    pairs = zip(frame["model"], frame["name"], strict=True)
    return frame.assign(name=[head_address(model, name) for model, name in pairs])


def head_column(label: str = "head") -> Any:
    """How `st.dataframe` shows a column of what `head_address` gives: as links."""
    return st.column_config.LinkColumn(label, display_text=r"head=([^&]*)$", width="small")
