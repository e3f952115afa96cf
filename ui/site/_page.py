"""A page and its choices: each in a widget, in the URL, and in the session for other pages."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, cast

import streamlit as st

from catalog import HeadsError
from catalog.errors import UsageError
from ui.site._texts import in_short, plain, short

MAX_MODELS = 9
NO_MODEL = "The catalog has no model yet. Measure one with `heads ingest MODEL`."
_YES = "yes"
_ALL = ["0.0", "1.0"]
"""Shares that leave nothing out."""

_HEAD = re.compile(r"L(\d{1,6})H(\d{1,6})", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9]{1,9}")
# A figure wider than a tablet shrinks with its text where it is SVG; a canvas is scrolled.
_STYLE = """<style>
[data-testid="stVegaLiteChart"] { overflow-x: auto; }
[data-testid="stVegaLiteChart"] svg.marks { max-width: 100%; height: auto; }
[data-testid="stVegaLiteChart"] .mark-rect path { shape-rendering: crispEdges; }
</style>"""


class NothingToShowError(Exception):
    """There is nothing to draw yet; the message says what to do."""


class Page:
    """A page's choices, each in a widget, in the URL, and in the session for other pages."""

    def __init__(self, name: str) -> None:
        """Begin a page; `opened` is the usual way."""
        self._name = name
        self._new: set[str] = set()
        self._chosen: dict[str, list[str]] = {}
        self._own: set[str] = set()
        self._is_trace = False

    def expect_trace(self, name: str) -> None:
        """Take an address with this name, which is none of the page's, for a trace of another page.

        Before it goes to another page, `st.switch_page` puts that page's choices into the address
        of this one, in an entry of the browser's history. Back there, the page shows what it
        showed before, and leaves the address as it is: each new entry would lead back to it.
        """
        self._is_trace = name in st.query_params

    def choose_several(
        self,
        name: str,
        possible: Sequence[str],
        *,
        default: Sequence[str],
        label: str | None = None,
        at_most: int | None = None,
        missing: Callable[[str], str] | None = None,
    ) -> list[str]:
        """Some of several, in the reader's order.

        Args:
            name: Of what there are several; also what the URL calls them.
            possible: What there is.
            default: What is chosen where nobody has chosen anything that there is.
            label: Of the widget, if not the name.
            at_most: How many.
            missing: What is said of one that is asked for and not there.

        Raises:
            NothingToShowError: If none is chosen.
        """
        asked = list(dict.fromkeys(self._asked(name, list(default))))
        for one in asked:
            if one not in possible:
                st.error(plain(missing(one) if missing else _unmeasured(name, one)))
        known = [one for one in asked if one in possible][:at_most]
        if not known and self._is_new(name):
            known = list(default)
        chosen = st.multiselect(
            label or name.capitalize(),
            list(possible),
            key=self._begin(name, known),
            max_selections=at_most,
            format_func=in_short(possible),
            select_all=False,
            placeholder=f"Choose up to {at_most}" if at_most else None,
        )
        self._chosen[name] = chosen
        if not chosen:
            raise NothingToShowError(f"Choose a {name} to see something.")
        return chosen

    def choose_any(
        self, name: str, possible: Sequence[str], *, label: str, default: Sequence[str] = ()
    ) -> list[str]:
        """Some of several, or none; says so where one that is asked for is not there."""
        asked = list(dict.fromkeys(self._asked(name, list(default), may_be_none=True)))
        for one in asked:
            if one not in possible:
                st.error(plain(f"the catalog has no {name} {one!r}"))
        known = [one for one in asked if one in possible]
        key = self._begin(name, known)
        chosen = st.multiselect(
            label, list(possible), key=key, format_func=in_short(possible), select_all=False
        )
        self._chosen[name] = chosen
        return chosen

    def choose_shares(self, name: str, *, label: str) -> tuple[float, float]:
        """A range within 0 to 1; all of it unless the reader chooses less."""
        asked = self._asked(name, [], may_be_none=True, none=_ALL) or _ALL
        ends = _number(asked[0], math.nan), _number(asked[-1], math.nan)
        if not 0 <= ends[0] <= ends[1] <= 1:
            st.error(plain(f"{name} must be two numbers from 0 to 1, the smaller first"))
            ends = 0.0, 1.0
        # The range that it begins with makes it a slider of two ends.
        slider = st.slider(label, 0.0, 1.0, key=self._begin(name, ends), step=0.01)
        lower, upper = cast("tuple[float, float]", slider)
        self._chosen[name] = [] if (lower, upper) == (0, 1) else [str(lower), str(upper)]
        return lower, upper

    def choose_limit(self, name: str, *, hint: str) -> float | None:
        """Any number, or none; its label is for those who do not see the hint in the field."""
        asked = self._asked(name, [], may_be_none=True)
        value = _number(asked[-1], math.nan) if asked else None
        if value is not None and not math.isfinite(value):
            st.error(plain(f"{name} must be a number, got {asked[-1]!r}"))
            value = None
        key = self._begin(name, value)
        chosen: float | None = st.number_input(
            plain(short(name)),
            value=None,
            key=key,
            # No score has steps; the widget still asks for some.
            step=0.05,
            format="%g",
            placeholder=hint,
            label_visibility="collapsed",
        )
        self._chosen[name] = [] if chosen is None else [str(chosen)]
        return chosen

    def choose_flag(self, name: str, *, label: str) -> bool:
        """Yes or no; no unless the reader says yes."""
        asked = self._asked(name, [], may_be_none=True)[-1:] == [_YES]
        chosen: bool = st.toggle(label, key=self._begin(name, asked))
        self._chosen[name] = [_YES] if chosen else []
        return chosen

    def choose_line(self, name: str, *, label: str) -> str:
        """Text of one line, or none."""
        asked = "".join(self._asked(name, [], may_be_none=True)[-1:])
        text: str = st.text_input(label, key=self._begin(name, asked))
        self._chosen[name] = [text] if text else []
        return text

    def choose_one(
        self,
        name: str,
        possible: Sequence[str],
        *,
        default: str,
        complain: bool = True,
        missing: Callable[[str], str] | None = None,
    ) -> str:
        """One of several.

        Args:
            name: Of what there are several; also what the URL calls them.
            possible: What there is.
            default: What is chosen where nobody has chosen one that there is.
            complain: Whether to say so where the one that is asked for is not there.
            missing: What is said then.
        """
        asked = self._asked(name, [default])[-1]
        if asked not in possible:
            if complain:
                st.error(plain(missing(asked) if missing else _unmeasured(name, asked)))
            asked = default
        key = self._begin(name, asked)
        chosen: str = st.selectbox(
            name.capitalize(), possible, key=key, format_func=in_short(possible)
        )
        self._chosen[name] = [chosen]
        return chosen

    def choose_part(self, name: str, parts: Sequence[str]) -> str:
        """Which part of a page to see, of a few side by side; the first unless another is asked."""
        asked = self._asked(name, [parts[0]])[-1]
        if asked not in parts:
            st.error(plain(f"{name} must be one of {', '.join(parts)}, got {asked!r}"))
            asked = parts[0]
        chosen: str = st.radio(
            name.capitalize(),
            list(parts),
            key=self._begin(name, asked),
            format_func=str.capitalize,
            horizontal=True,
            label_visibility="collapsed",
        )
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

    def choose_position(self, name: str, *, label: str, upper: int) -> int | None:
        """A whole number from 0, or none; the largest where it is larger."""
        asked = self._asked(name, [])[-1:]
        if asked and not _WHOLE.fullmatch(asked[0]):
            st.error(plain(f"{name} must be a whole number from 0 to {upper}, got {asked[0]!r}"))
            asked = []
        key = self._begin(name, min(int(asked[0]), upper) if asked else None)
        chosen: int | None = st.number_input(label, 0, upper, value=None, key=key, step=1)
        self._chosen[name] = [] if chosen is None else [str(chosen)]
        return chosen

    def choose_thresholds(self, rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rules with the thresholds that the reader has moved them to."""
        if not rules:
            return []
        chosen = []
        with st.expander("Thresholds", expanded=len(rules) == 1):
            for rule in rules:
                threshold = self._choose_share(f"{rule['metric']} from", rule["threshold"])
                chosen.append({**rule, "threshold": threshold})
        return chosen

    def _choose_share(self, name: str, default: float) -> float:
        asked = self._asked(name, [str(default)])[-1]
        try:
            value = float(asked)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            st.error(plain(f"{name} must be a number from 0 to 1, got {asked!r}"))
            value = default
        key = self._begin(name, value)
        chosen = st.slider(plain(short(name)), 0.0, 1.0, key=key, step=0.01, width=400)
        self._chosen[name] = [str(chosen)]
        return chosen

    def choose_filter(self, name: str, counts: Mapping[str, int]) -> list[str]:
        """Some of several to see them only; where none is chosen, all are meant.

        Args:
            name: Of what there are several; also what the URL calls them.
            counts: How much there is of each, in the order in which they are offered.
        """
        name_of = in_short(counts)
        asked = list(dict.fromkeys(self._asked(name, [], may_be_none=True)))
        for one in asked:
            if one not in counts:
                st.error(plain(f"the catalog has no {name} {one!r}"))
        chosen = st.multiselect(
            name.capitalize(),
            list(counts),
            key=self._begin(name, [one for one in asked if one in counts]),
            format_func=lambda one: f"{name_of(one)} ({counts[one]})",
            select_all=False,
            placeholder="All",
        )
        self._chosen[name] = chosen
        return chosen

    def choose_day(self, name: str) -> date | None:
        """A day; None where it does not matter."""
        asked = self._asked(name, [], may_be_none=True)
        try:
            day = date.fromisoformat(asked[-1]) if asked else None
        except ValueError:
            st.error(plain(f"{name} must be a day such as 2026-01-31, got {asked[-1]!r}"))
            day = None
        chosen: date | None = st.date_input(
            name.capitalize(), value=None, key=self._begin(name, day), format="YYYY-MM-DD"
        )
        self._chosen[name] = [] if chosen is None else [chosen.isoformat()]
        return chosen

    def choose_head(self, names: Sequence[str]) -> tuple[str, int, int]:
        """One of some models, and one of its heads by its name `L5H3`; neither need exist.

        Raises:
            UsageError: If what was written is no head.
        """
        # Else the models of a map would be gone when the reader comes back to it from a head.
        first = (st.session_state.get("model") or list(names))[:1]
        self._own |= {"model", "head"}
        model_place, head_place = st.columns([3, 1])
        with model_place:
            asked = self._asked("model", first)[:1] or first
            # What the URL asks for is shown and complained of, not replaced by something else.
            model: str = st.selectbox(
                "Model",
                list(names),
                key=self._begin("model", asked[0]),
                format_func=in_short(names),
                accept_new_options=True,
            )
        with head_place:
            asked_head = "".join(self._asked("head", ["L0H0"])[-1:])
            name = st.text_input("Head", key=self._begin("head", asked_head), placeholder="L5H3")
        self._chosen["model"], self._chosen["head"] = [model], [name]
        return model, *head_of(name)

    def choose_text(self, name: str, label: str, *, default: str, height: int) -> str:
        """Text of several lines, as the reader last sent it; within `st.form`."""
        asked = "".join(self._asked(name, [default])[-1:])
        text: str = st.text_area(label, key=self._begin(name, asked), height=height)
        self._chosen[name] = [text]
        return text

    def say(self, name: str, value: str) -> None:
        """Have the widget of this name show another value from the next run on."""
        st.session_state.pop(self._key(name), None)
        st.session_state[self._memory(name)] = [value]
        st.query_params[name] = value

    def is_new(self, name: str) -> bool:
        """Whether no widget of this name has been shown on this page yet."""
        return self._is_new(name)

    def forget(self, names: Sequence[str]) -> None:
        """Have these choices be as if nobody had ever made them, from the next run on."""
        for name in names:
            st.session_state.pop(self._key(name), None)
            st.session_state.pop(self._memory(name), None)
            if name in st.query_params:
                del st.query_params[name]

    def link(self) -> None:
        """Take the choices into the URL and the session, in one entry of the browser's history."""
        changed = {
            name
            for name, values in self._chosen.items()
            if values != st.session_state.get(self._memory(name))
        }
        if self._is_trace:
            if changed - self._new:
                st.query_params.from_dict(self._chosen)
        elif news := {
            name: values
            for name, values in self._chosen.items()
            if name in changed | self._new and values != st.query_params.get_all(name)
        }:
            st.query_params.update(news)
        for name, values in self._chosen.items():
            st.session_state[self._memory(name)] = values

    # Streamlit can bind a widget to the URL itself, but leaves out what equals the default and
    # drops what it does not know: a link would change its meaning with the next ingest, or lose
    # part of it in silence.

    def _asked(
        self,
        name: str,
        default: list[str],
        *,
        may_be_none: bool = False,
        none: Sequence[str] = (),
    ) -> list[str]:
        """What the reader has chosen; else what the URL says, or another page; else `default`.

        Where nothing may be chosen, a URL without the name says so; `none` is what the widget
        shows then.
        """
        linked = [] if self._is_trace else st.query_params.get_all(name)
        kept = st.session_state.get(self._memory(name))
        if self._is_new(name):
            return linked or kept or default
        value = st.session_state[self._key(name)]
        values = _texts(value)
        if values == list(none):
            values = []
        # The URL is newer than the widget after the browser's back button only.
        is_said = linked or (may_be_none and not self._is_trace)
        return linked if is_said and values == kept != linked else values

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

    def _memory(self, name: str) -> str:
        """Where the session keeps a choice: for all pages, but for what is this page's own."""
        return f"{name} of {self._name}" if name in self._own else name

    def _key(self, name: str) -> str:
        # Each page has widgets of its own: Streamlit forgets a widget when the page changes.
        return f"{name} on {self._name}"


@contextlib.contextmanager
def opened(name: str, title: str) -> Iterator[Page]:
    """A page with its title, which shows what a user can put right as one sentence."""
    st.html(_STYLE)
    st.title(title)
    page = Page(name)
    try:
        yield page
    except NothingToShowError as reason:
        st.info(str(reason))
    except HeadsError as error:
        st.error(plain(str(error)))
    page.link()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Show what a user can put right as one sentence, where only a part of a page runs again."""
    try:
        yield
    except HeadsError as error:
        st.error(plain(str(error)))


def head_of(name: str) -> tuple[int, int]:
    """Layer and head of a name such as `L5H3`.

    Raises:
        UsageError: If it is none.
    """
    found = _HEAD.fullmatch(name.strip())
    if found is None:
        raise UsageError(f"{name!r} is no head; write it like L5H3, layer and head from 0")
    return int(found[1]), int(found[2])


def _unmeasured(name: str, one: str) -> str:
    return f"nothing is measured here of {name} {one!r}"


def _texts(value: object) -> list[str]:
    """A widget's value as the URL has it."""
    if value is None or value is False or value == "":
        return []
    several = value if isinstance(value, list | tuple) else [value]
    return [_YES if one is True else str(one) for one in several]


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise
