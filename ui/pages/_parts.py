"""What pages share: choosing models and a taxonomy, and showing errors, sources and data."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from catalog import Catalog, HeadsError, connect, queries

MAX_MODELS = 9

_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Choice:
    """What a reader has chosen to see."""

    taxonomy: str
    labels: list[str]
    """All labels of the taxonomy, whichever models have them."""
    frame: pd.DataFrame
    """As `catalog.queries.head_labels` gives it."""


def plain(text: str) -> str:
    """Text for places where Streamlit reads Markdown, so that names show as they are."""
    return _MARKDOWN.sub(r"\\\1", text)


class NothingToShowError(Exception):
    """There is nothing to draw yet; the message says what to do."""


class Page:
    """A page's choices, each in a widget, in the URL, and in the session for other pages."""

    def __init__(self, name: str) -> None:
        """Begin a page; `opened` is the usual way."""
        self._name = name
        self._new: set[str] = set()
        self._chosen: dict[str, list[str]] = {}

    def choose(self) -> Choice:
        """Models and a taxonomy.

        Raises:
            NothingToShowError: If there is none, or none is chosen.
        """
        # Opened anew each time: it takes 40 ms, and shows what an ingest has just published.
        catalog = connect()
        models_place, taxonomy_place = st.columns([3, 1])
        with models_place:
            models = self._choose_models(catalog)
        with taxonomy_place:
            taxonomy = self._choose_taxonomy(catalog, models)
        frame = queries.head_labels(catalog, models, taxonomy).pandas()
        if frame["label"].isna().all():
            st.info(
                f"No head of the chosen models has a label of the taxonomy {plain(taxonomy)}. "
                "Bring labels with `heads labels import FILE.csv`; "
                "`heads ingest MODEL` gives labels by rule."
            )
        return Choice(taxonomy, queries.taxonomy_labels(catalog, taxonomy), frame)

    def choose_several(
        self,
        name: str,
        possible: Sequence[str],
        *,
        default: Sequence[str],
        at_most: int | None = None,
    ) -> list[str]:
        """Some of several, in the reader's order.

        Args:
            name: Of what there are several; also what the URL calls them.
            possible: What there is.
            default: What is chosen where nobody has chosen anything that there is.
            at_most: How many.

        Raises:
            NothingToShowError: If none is chosen.
        """
        asked = list(dict.fromkeys(self._asked(name, list(default))))
        for one in asked:
            if one not in possible:
                st.error(plain(f"nothing is measured here of {name} {one!r}"))
        known = [one for one in asked if one in possible][:at_most]
        if not known and self._is_new(name):
            known = list(default)
        chosen = st.multiselect(
            name.capitalize(),
            list(possible),
            key=self._begin(name, known),
            max_selections=at_most,
            select_all=False,
        )
        self._chosen[name] = chosen
        if not chosen:
            raise NothingToShowError(f"Choose a {name} to see something.")
        return chosen

    def choose_one(self, name: str, possible: Sequence[str], *, default: str) -> str:
        """One of several."""
        asked = self._asked(name, [default])[-1]
        if asked not in possible:
            st.error(plain(f"nothing is measured here of {name} {asked!r}"))
            asked = default
        chosen: str = st.selectbox(name.capitalize(), possible, key=self._begin(name, asked))
        self._chosen[name] = [chosen]
        return chosen

    def choose_number(self, name: str, *, lower: int, upper: int, default: int) -> int:
        """A whole number."""
        possible = [str(number) for number in range(lower, upper + 1)]
        asked = self._asked(name, [str(default)])[-1]
        if asked not in possible:
            st.error(plain(f"{name} must be a whole number from {lower} to {upper}, got {asked!r}"))
            asked = str(default)
        key = self._begin(name, int(asked))
        number = st.number_input(name.capitalize(), lower, upper, key=key, width=160)
        self._chosen[name] = [str(number)]
        return number

    def link(self) -> None:
        """Take the choices into the URL and the session, in one entry of the browser's history."""
        news = {
            name: values
            for name, values in self._chosen.items()
            if (name in self._new or values != st.session_state.get(name))
            and values != st.query_params.get_all(name)
        }
        if news:
            st.query_params.update(news)
        for name, values in self._chosen.items():
            st.session_state[name] = values

    def _choose_models(self, catalog: Catalog) -> list[str]:
        rows = queries.models(catalog).rows()
        if not rows:
            raise NothingToShowError(
                "The catalog has no model yet. Measure one with `heads ingest MODEL`."
            )
        names = [row["model"] for row in rows]
        labelled = [row["model"] for row in rows if row["labelled_heads"]]
        asked = self._asked("model", (labelled or names)[:1])[:MAX_MODELS]
        for name in asked:
            if name not in names:
                _complain(catalog, name)
        known = [name for name in dict.fromkeys(asked) if name in names]
        models = st.multiselect(
            "Models",
            names,
            key=self._begin("model", known),
            max_selections=MAX_MODELS,
            select_all=False,
            placeholder=f"Choose up to {MAX_MODELS} models",
        )
        self._chosen["model"] = models
        if not models:
            raise NothingToShowError("Choose a model to see its heads.")
        return models

    def _choose_taxonomy(self, catalog: Catalog, models: Sequence[str]) -> str:
        heads = {row["taxonomy"]: row["heads"] for row in queries.taxonomies(catalog, *models)}
        if not heads:
            raise NothingToShowError(
                "No head in the catalog has a label yet. Bring labels with "
                "`heads labels import FILE.csv`; `heads ingest MODEL` gives labels by rule."
            )
        first = queries.usual_taxonomy(heads)
        asked = self._asked("taxonomy", [first])[-1]
        if asked not in heads:
            st.error(plain(f"no head in the catalog has a label of the taxonomy {asked!r}"))
            asked = first
        key = self._begin("taxonomy", asked)
        taxonomy: str = st.selectbox("Taxonomy", sorted(heads), key=key)
        self._chosen["taxonomy"] = [taxonomy]
        return taxonomy

    # Streamlit can bind a widget to the URL itself, but leaves out what equals the default and
    # drops what it does not know: a link would change its meaning with the next ingest, or lose
    # part of it in silence.

    def _asked(self, name: str, default: list[str]) -> list[str]:
        """What the reader has chosen; else what the URL says, or another page; else `default`."""
        linked = st.query_params.get_all(name)
        kept = st.session_state.get(name)
        if self._is_new(name):
            return linked or kept or default
        value = st.session_state[self._key(name)]
        values = value if isinstance(value, list) else [str(value)]
        # The URL is newer than the widget after the browser's back button only.
        return linked if linked and values == kept != linked else values

    def _begin(self, name: str, value: object) -> str:
        """Give the widget, which comes next, its value; returns its key."""
        key = self._key(name)
        if self._is_new(name):
            self._new.add(name)
        if st.session_state.get(key) != value:
            st.session_state[key] = value
        return key

    def _is_new(self, name: str) -> bool:
        return self._key(name) not in st.session_state

    def _key(self, name: str) -> str:
        # Each page has widgets of its own: Streamlit forgets a widget when the page changes.
        return f"{name} on {self._name}"


@contextlib.contextmanager
def opened(name: str, title: str) -> Iterator[Page]:
    """A page with its title, which shows what a user can put right as one sentence."""
    st.title(title)
    page = Page(name)
    try:
        yield page
    except NothingToShowError as reason:
        st.info(str(reason))
    except HeadsError as error:
        st.error(plain(str(error)))
    page.link()


def cite(chosen: Choice) -> None:
    """Say whose labels these are."""
    sources = sorted(chosen.frame["source"].dropna().unique())
    named = plain(", ".join(sources) or "none")
    text = f"Taxonomy {plain(chosen.taxonomy)}; source of the labels: {named}."
    if "rule" in sources:
        text += (
            " Labels by rule come from thresholds on published scores; the category map shows the "
            "score and threshold behind a label when you point at its head."
        )
    st.caption(text)


def table(counts: pd.DataFrame, *, share_of: str) -> None:
    """Counts with the columns heads and share (0 to 1), shares shown in percent."""
    st.dataframe(
        counts.assign(share=100 * counts["share"]),
        hide_index=True,
        width="content",
        column_config={
            "model": st.column_config.TextColumn(width="medium"),
            "heads": st.column_config.NumberColumn("# heads"),
            "share": st.column_config.NumberColumn(f"share of {share_of}", format="%.1f%%"),
        },
    )


def download(data: pd.DataFrame, name: str) -> None:
    st.download_button(
        "Download as CSV", data.to_csv(index=False), name, "text/csv", icon=":material/download:"
    )


def _complain(catalog: Catalog, name: str) -> None:
    try:
        queries.require_model(catalog, name)
    except HeadsError as error:
        st.error(plain(str(error)))
