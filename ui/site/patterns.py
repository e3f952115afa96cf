"""Page: whole attention patterns of chosen heads, models one under the other."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from catalog import Catalog, patterns, queries, scored
from catalog.errors import UsageError
from catalog.jobs import Job, JobStore, State, listing
from catalog.patterns import Found, StoredPattern
from catalog.sources import checkpoint
from catalog.texts import readable
from ui import charts, queueing
from ui.site import _access, _canvas, _choosing, _page, _parts
from ui.site._answers import connect
from ui.site._texts import plain, short

MOST_MODELS = 4
MOST_HEADS = 64
"""Of a model, at once."""
MOST_TOKENS = 128
"""At once: of more, a cell would be less than a pixel where eight heads stand side by side."""
LEAST_TOKENS = 2
"""Of a pattern: a lone token attends to itself."""
MOST_COLUMNS = 12
MOST_CHARACTERS = 4000
"""Of a reader's own prompt."""
EVERY = 1.0
"""Seconds between two looks at a job."""
BY_NAME, BY_SCORE = WAYS = ("name", "score")
LARGEST, SMALLEST = DIRECTIONS = ("largest first", "smallest first")
AUTO = "auto"

Wanted = dict[str, list[str]]
"""By model the names of heads, such as `L5H5` or `L5`; none: all that are stored."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is shown of a prompt, and how."""

    count: int
    """Tokens of the prompt, in the model that makes most of it."""
    first: int
    last: int
    across: int | None
    """Heads side by side; as the chart does it where None."""

    @property
    def is_part(self) -> bool:
        return (self.first, self.last) != (0, self.count - 1)


def choose_prompt(
    page: _page.Page, models: Sequence[str], stored: Sequence[Mapping[str, Any]]
) -> str | None:
    """One of the prompts that any of the models has, first those of most models."""
    having: dict[str, list[str]] = {}
    for row in stored:
        if row["model"] in models:
            having.setdefault(row["prompt"], []).append(row["model"])
    if not having:
        return None
    prompts = sorted(having, key=lambda prompt: -len(having[prompt]))
    # A link that asks for what is not there is told so; other models chosen by hand are not.
    return page.choose_one("prompt", prompts, default=prompts[0], complain=page.is_new("prompt"))


def choose_heads(
    page: _page.Page, catalog: Catalog, rows: Mapping[str, Mapping[str, Any]], way: str
) -> Wanted:
    """The heads of each model; models whose heads cannot be meant are told of, and left out."""
    if way == BY_SCORE:
        return heads_by_score(page, catalog, list(rows))
    wanted = {}
    for place, (model, row) in zip(st.columns(len(rows)), rows.items(), strict=True):
        with place:
            name = f"heads of {model}"
            text = page.choose_line(name, label=f"Heads of {plain(short(model))}")
        with _page.told():
            wanted[model] = heads_by_name(row, text)
    st.caption(
        "Heads stand in the order in which they are named, such as L5H1 L6H9; L5 is a whole layer. "
        "Where none is named, all that are stored."
    )
    return wanted


def heads_by_name(row: Mapping[str, Any], text: str) -> list[str]:
    """What a text names.

    Raises:
        UsageError: If a part of it is no head, or none of this model.
    """
    names = [name for name in re.split(r"[\s,]+", text) if name]
    for layer, head in patterns.places(",".join(names)) if names else []:
        if layer >= row["n_layers"] or (head or 0) >= row["n_heads"]:
            named = f"L{layer}" if head is None else f"L{layer}H{head}"
            raise UsageError(
                f"{row['model']} has {row['n_layers']} layers of {row['n_heads']} heads, counted "
                f"from 0, and no {named}"
            )
    return names


def heads_by_score(page: _page.Page, catalog: Catalog, models: Sequence[str]) -> Wanted:
    there = scored.choices(catalog, models=models).rows()
    if not there:
        st.info(
            "Nothing is measured of all these models on the same probe. "
            "Measure them alike with `heads ingest MODEL`."
        )
        return {}
    one = _choosing.choose_metric(page, there)
    count_place, direction_place, _ = st.columns([1, 1, 2])
    with count_place:
        count = page.choose_number("count", lower=1, upper=MOST_HEADS, default=9)
    with direction_place:
        direction = page.choose_one("direction", DIRECTIONS, default=LARGEST)
    st.caption(plain(one.about))
    scores = scored.values(catalog, models, one.metric, one.probe).pandas().dropna(subset="value")
    order = scores.sort_values("value", ascending=direction == SMALLEST, kind="stable")
    ranked = {}
    for model in models:
        found = order.loc[order["model"] == model, "name"].head(count)
        if found.empty:
            st.info(plain(f"{one} is undefined for every head of {model}."))
        else:
            ranked[model] = list(found)
    return ranked


def choose_layout(page: _page.Page, count: int) -> Layout:
    """What is shown of a prompt with so many tokens, and how."""
    columns_place, first_place, last_place = st.columns(3)
    with columns_place:
        columns = [AUTO, *map(str, range(1, MOST_COLUMNS + 1))]
        across = page.choose_one("columns", columns, default=AUTO)
    with first_place:
        first = page.choose_position("first", label="First token", upper=count - 1) or 0
    with last_place:
        chosen = page.choose_position("last", label="Last token", upper=count - 1)
    last = count - 1 if chosen is None else chosen
    if last <= first:
        st.error("The last token must come after the first; the tokens from the first on are shown")
        last = count - 1
    first = min(first, count - 2)
    return Layout(
        count=count,
        first=first,
        last=min(last, first + MOST_TOKENS - 1),
        across=None if across == AUTO else int(across),
    )


def tell_what_is_missing(
    row: Mapping[str, Any], names: Sequence[str], prompt: str | None, *, what: str
) -> None:
    """Say that a model lacks patterns, and which command stores them."""
    st.info(plain(f"{row['model']} has no stored pattern of {what}. This stores it:"))
    st.code(command(row, names or ["L0"], prompt), language="bash", wrap_lines=True)


def command(row: Mapping[str, Any], names: Sequence[str], prompt: str | None) -> str:
    """What stores patterns of a model."""
    # The command finds the files by the model's name; where they lie is no business of readers.
    is_known = checkpoint(row["source"], row["revision"]) is not None
    asked = ["heads", "patterns"]
    asked += [row["model"]] if is_known else ["CHECKPOINT", "--name", row["model"]]
    asked += ["--heads", ",".join(names), f"--prompt={'TEXT' if prompt is None else prompt}"]
    return shlex.join(asked)


def read(
    catalog: Catalog, rows: Mapping[str, Mapping[str, Any]], wanted: Wanted, prompt: str | None
) -> list[list[StoredPattern]]:
    """The patterns of each model that has any; what is missing is told."""
    if prompt is None:
        for model, names in wanted.items():
            tell_what_is_missing(rows[model], names, prompt, what="any head")
        return []
    found: dict[str, Found] = {}
    with _page.told():
        found = patterns.find(catalog, wanted, prompt=prompt, at_most=MOST_HEADS)
    for model, one in found.items():
        absent = [f"L{layer}" + ("" if head is None else f"H{head}") for layer, head in one.absent]
        if absent or not one.patterns:
            what = f"{', '.join(absent) or 'any head'} on this prompt"
            tell_what_is_missing(rows[model], absent, prompt, what=what)
        if one.left_out:
            count = len(one.patterns) + one.left_out
            told = f"{model}: the first {MOST_HEADS} of {count} heads; name those to be seen."
            st.caption(plain(told))
    return [one.patterns for one in found.values() if one.patterns]


def show(grids: Sequence[list[StoredPattern]], prompt: str, layout: Layout) -> None:
    first, last = layout.first, layout.last
    shown = [grid for grid in grids if len(grid[0].tokens) > first + 1]
    for grid in grids:
        if grid not in shown:
            n = len(grid[0].tokens)
            st.info(plain(f"{grid[0].model} has only {n} tokens on this prompt."))
    if not shown:
        return
    if layout.is_part:
        st.caption(
            f"Tokens {first} to {last} of {layout.count}, as queries and as keys; "
            f"at most {MOST_TOKENS} are shown at once."
            f"{' Attention to earlier tokens is not shown.' if first else ''}"
        )
    opened = _canvas.pattern_canvas(shown, first=first, last=last, across=layout.across, key="grid")
    if opened is not None:
        _parts.open_head(*opened)
    offer_downloads(shown, prompt, layout)
    runs = sorted({one.run_id for grid in shown for one in grid})
    st.caption(
        "Query down, key across; blank where no query attends. "
        f"Run{'s' if runs[1:] else ''} {', '.join(map(str, runs))}; "
        f"every number within {max(one.max_error for grid in shown for one in grid):.5f} of what "
        "was measured. Point at a cell to see its tokens, click to open its head. "
        "After figure three of arXiv:2512.05865."
    )


def offer_downloads(grids: Sequence[list[StoredPattern]], prompt: str, layout: Layout) -> None:
    first, last, across = layout.first, layout.last, layout.across

    def cells() -> Any:
        every = [one for grid in grids for one in grid]
        return patterns.cells(every, first=first, last=last).pandas()

    names = {grid[0].model: [one.name for one in grid] for grid in grids}
    lines = [
        f"found {'+' if place else ''}= patterns.read(heads, {model!r}, {of!r}, prompt={prompt!r})"
        for place, (model, of) in enumerate(names.items())
    ]
    part = f", first={first}, last={last}" if layout.is_part else ""
    beside = f", across={across}" if across else ""
    asked = ["grid", *names, *(f"--heads={','.join(of)}" for of in names.values())]
    asked += [f"--prompt={prompt}"]
    asked += [f"--tokens={first}-{last}"] if layout.is_part else []
    asked += [f"--columns={across}"] if across else []
    _parts.downloads(
        lambda: charts.pattern_grid(cells(), across=across),
        cells,
        "patterns",
        code="\n".join(
            [
                "from catalog import patterns",
                *lines,
                f"frame = patterns.cells(found{part}).pandas()",
                f"chart = charts.pattern_grid(frame{beside})",
            ]
        ),
        command=shlex.join(asked),
    )


def offer_running(
    page: _page.Page, catalog: Catalog, rows: Mapping[str, Mapping[str, Any]], wanted: Wanted
) -> None:
    """A form for the reader's own prompt, and what becomes of it."""
    st.header("Run on my prompt")
    reader = _access.permission()
    if reader.by is None:
        _access.refuse(reader)
        st.caption("From a shell:")
        lines = [command(rows[model], names or ["L0"], None) for model, names in wanted.items()]
        st.code("\n".join(lines), language="bash", wrap_lines=True)
        return
    with st.form("own prompt"):
        prompt = st.text_area("My prompt", max_chars=MOST_CHARACTERS, height=100)
        if st.form_submit_button("Run"):
            with _page.told():
                jobs = submit(catalog, rows, wanted, prompt)
                st.query_params["job"] = [str(job.id) for job in jobs]
    asked = st.query_params.get_all("job")
    if asked:
        with _page.told():
            follow(page, queueing.find_store(catalog.database), asked)


def submit(
    catalog: Catalog, rows: Mapping[str, Mapping[str, Any]], wanted: Wanted, prompt: str
) -> list[Job]:
    """Queue a job for each model.

    Raises:
        NotAllowedError: If the reader may not.
        UsageError: If there is no prompt, or heads or files of a model are not known.
    """
    by = _access.permission().require()
    if not prompt.strip():
        raise UsageError("write a prompt first")
    asked = []
    for model, names in wanted.items():
        found = checkpoint(rows[model]["source"], rows[model]["revision"])
        if found is None:
            raise UsageError(f"the catalog does not say where {model} came from; it cannot be run")
        if not names:
            raise UsageError(f"name heads of {model} to be seen on your prompt, such as L5H1 or L5")
        places = patterns.places(",".join(names))
        if sum(rows[model]["n_heads"] if head is None else 1 for _, head in places) > MOST_HEADS:
            raise UsageError(
                f"more than {MOST_HEADS} heads of {model} are not run from here; "
                "`heads patterns` runs any number"
            )
        asked.append((model, found, ",".join(names)))
    return [
        queueing.submit_patterns(catalog, model, found, heads, prompt, by=by, tell=st.warning).job
        for model, found, heads in asked
    ]


def follow(page: _page.Page, store: JobStore | None, asked: Sequence[str]) -> None:
    """How far the jobs are that the address names; their prompt, once they have succeeded.

    Raises:
        UsageError: If there is no such job, or it stores no patterns.
    """
    ids = [int(one) for one in asked if re.fullmatch(r"[0-9]{1,9}", one)]
    jobs = [] if store is None else [store.get(one) for one in ids]
    if store is None or not jobs or any(job.suite != queueing.STORED_PATTERNS for job in jobs):
        raise UsageError(f"no job that stores patterns is called {', '.join(asked)}")
    if not all(job.is_over for job in jobs):
        watch(page, store, ids)
        return
    settle(page, jobs)
    for job in jobs:
        show_job(store, job)
    if st.button("Dismiss"):
        del st.query_params["job"]
        st.rerun()


@st.fragment(run_every=EVERY)
def watch(page: _page.Page, store: JobStore, ids: Sequence[int]) -> None:
    with _page.told():
        jobs = [store.get(one) for one in ids]
        for job in jobs:
            show_job(store, job)
        if all(job.is_over for job in jobs):
            settle(page, jobs)
            st.rerun()


def settle(page: _page.Page, jobs: Sequence[Job]) -> None:
    """Show the prompt of jobs that have all succeeded."""
    if all(job.state == State.SUCCEEDED for job in jobs):
        page.say("prompt", readable(jobs[0].request["prompts"][0]))
        del st.query_params["job"]
        st.rerun()


def show_job(store: JobStore, job: Job) -> None:
    told = plain(f"Job {job.id}, {job.request['name']}: {job.state}")
    if job.state == State.FAILED:
        st.error(f"{told}: {plain(listing.progress(job) or '')}")
    else:
        share = min(job.done / job.total, 1.0) if job.total else 0.0
        stage = listing.progress(job)
        text = f"{told}, {plain(stage)}" if stage else told
        st.progress(1.0 if job.state == State.SUCCEEDED else share, text=text)
    if job.state == State.QUEUED and not store.workers(alive_within=listing.SILENT.total_seconds()):
        st.caption("No worker was heard of. Start one with `heads worker`, or `heads up`.")
    st.page_link("site/jobs.py", label=f"Job {job.id}", query_params={"job": str(job.id)})


with _page.opened("patterns", "Patterns") as page:
    page.expect_trace("head")
    catalog = connect()
    known = {row["model"]: row for row in queries.models(catalog)}
    if not known:
        raise _page.NothingToShowError(_page.NO_MODEL)
    stored = patterns.prompts(catalog).rows()
    having = list(dict.fromkeys(row["model"] for row in stored))
    models_place, prompt_place = st.columns(2)
    with models_place:
        names = having + [name for name in known if name not in having]
        models = page.choose_several("model", names, default=names[:1], at_most=MOST_MODELS)
    rows = {model: known[model] for model in models}
    with prompt_place:
        prompt = choose_prompt(page, models, stored)
    lengths = [
        row["n_tokens"] for row in stored if row["model"] in rows and row["prompt"] == prompt
    ]
    way_place, layout_place = st.columns([1, 3])
    with way_place:
        way = page.choose_one("heads by", WAYS, default=BY_NAME)
    with layout_place:
        layout = choose_layout(page, max(lengths, default=LEAST_TOKENS))
    wanted = choose_heads(page, catalog, rows, way)
    grids = read(catalog, rows, wanted, prompt)
    if grids and prompt is not None:
        show(grids, prompt, layout)
    drawn = {grid[0].model: [one.name for one in grid] for grid in grids}
    running = {model: heads or drawn.get(model, []) for model, heads in wanted.items()}
    offer_running(page, catalog, rows, running)
