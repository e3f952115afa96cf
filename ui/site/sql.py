"""Page: a console for SQL that reads the catalog's views, within limits."""

import shlex
from functools import partial

import pandas as pd
import streamlit as st

from catalog import sandbox
from catalog.errors import QueryError
from catalog.settings import load_settings
from catalog.views import VIEWS
from ui import charts, formats
from ui.site import _page, _parts
from ui.site._answers import connect
from ui.site._texts import plain

EXAMPLES = {
    "Strongest induction heads": (
        "SELECT model, layer, head, value\nFROM scores\nWHERE metric = 'induction'\n"
        "ORDER BY value DESC NULLS LAST\nLIMIT 20"
    ),
    "Metrics by depth": (
        "SELECT metric, round(10 * depth) / 10 AS depth, avg(value) AS mean\n"
        "FROM scores\nJOIN heads USING (model, layer, head)\n"
        "WHERE metric IN ('induction', 'previous_token', 'first_token')\n"
        "GROUP BY 1, 2\nORDER BY 1, 2"
    ),
    "Labels by model": (
        "SELECT model, taxonomy, label, count(*) AS heads\nFROM labels\n"
        "GROUP BY 1, 2, 3\nORDER BY 1, 2, 4 DESC"
    ),
    "What was measured": (
        "SELECT model, suite, probe, status, seconds, error\nFROM runs\nORDER BY started_at DESC"
    ),
}
FIRST = EXAMPLES["What was measured"]
NO_CHART, NO_COLUMN = "none", "(none)"
_ANSWER = "answer on sql"


def answer(query: str, *, anew: bool) -> sandbox.Answer:
    """The query's answer; other choices of the reader do not ask again."""
    kept = st.session_state.get(_ANSWER)
    if anew or kept is None or kept[0] != query:
        st.session_state.pop(_ANSWER, None)
        with st.spinner("Asking"):
            kept = query, sandbox.ask(connect().database, query)
        st.session_state[_ANSWER] = kept
    found: sandbox.Answer = kept[1]
    return found


def show_error(error: QueryError) -> None:
    """The first line as a message; what the database adds (where, and what is near) as it is."""
    first, _, rest = str(error).partition("\n")
    st.error(plain(first))
    if rest.strip():
        st.code(rest.strip(), language=None)


def schema() -> None:
    for name, view in VIEWS.items():
        with st.expander(f"{name}: {plain(view.description)}"):
            st.text("\n".join(f"{column}: {holds}" for column, holds in view.columns.items()))


def draw(page: _page.Page, query: str, frame: pd.DataFrame) -> None:
    """A chart of columns that the reader chooses."""
    places = st.columns(4)
    columns = [str(one) for one in frame.columns]
    with places[0]:
        kinds = [NO_CHART, *charts.RESULT_KINDS]
        kind = page.choose_one("chart", kinds, default=NO_CHART)
    if kind == NO_CHART:
        return
    with places[1]:
        x = page.choose_one("x", columns, default=columns[0], complain=False)
    with places[2]:
        y = page.choose_one("y", columns, default=columns[-1], complain=False)
    with places[3]:
        colour = page.choose_one("colour", [NO_COLUMN, *columns], default=NO_COLUMN, complain=False)
    chosen = None if colour == NO_COLUMN else colour
    named = {"x": x, "y": y} | ({"colour": chosen} if chosen else {})
    options = ", ".join(f"{name}={value!r}" for name, value in {"kind": kind, **named}.items())
    flags = [text for name, value in named.items() for text in (f"--{name}", value)]
    _parts.figure(
        charts.result_chart(frame, kind=kind, x=x, y=y, colour=chosen),
        frame,
        "answer",
        code="from catalog import sandbox\n"
        f"frame = sandbox.ask(heads.database, {query!r}).result.pandas()\n"
        f"chart = charts.result_chart(frame, {options})",
        command=shlex.join(["sql", query, "--marks", kind, *flags]),
        alt_text=f"{kind.capitalize()} of {y} by {x}",
    )


def download(result: sandbox.Result) -> None:
    kinds = (
        ("CSV", "csv", "text/csv", formats.csv),
        ("Parquet", "parquet", "application/vnd.apache.parquet", formats.parquet),
        ("JSON", "json", "application/json", formats.json_text),
    )
    for place, (label, suffix, media, write) in zip(st.columns(len(kinds)), kinds, strict=True):
        place.download_button(
            f"Download as {label}",
            # Made when it is asked for, not at every look.
            partial(write, result),
            f"answer.{suffix}",
            media,
            icon=":material/download:",
            on_click="ignore",
        )


with _page.opened("sql", "SQL") as page:
    limits = sandbox.limits_of(load_settings())
    schema_place, console_place = st.columns([1, 3], gap="large")
    with schema_place:
        st.subheader("Views")
        schema()
    with console_place:
        for place, (title, query) in zip(st.columns(len(EXAMPLES)), EXAMPLES.items(), strict=True):
            place.button(title, on_click=page.say, args=("query", query), width="stretch")
        with st.form("console", border=False):
            query = page.choose_text(
                "query",
                "One SELECT over the views",
                default=EXAMPLES["What was measured"],
                height=180,
            )
            is_sent = st.form_submit_button("Run", type="primary")
        st.caption(
            f"Reads only. A query may take {limits.seconds:g} s and "
            f"{limits.memory // 2**20} MB of memory; an answer has at most {limits.rows:,} rows "
            f"and {limits.bytes // 2**20} MB. The address of this page keeps the query."
        )
        if not query.strip():
            raise _page.NothingToShowError("Write a query, or take one of the examples.")
        try:
            found = answer(query, anew=is_sent)
        except QueryError as error:
            show_error(error)
        else:
            if found.notice:
                st.warning(found.notice)
            st.caption(f"{len(found.result):,} rows in {found.seconds:.2f} s")
            st.dataframe(found.result.arrow(), hide_index=True)
            download(found.result)
            if len(found.result):
                draw(page, query, found.result.pandas())
            else:
                st.info(
                    "The answer has no row. The page Overview tells what is measured; "
                    "`heads ingest MODEL` measures a model."
                )
