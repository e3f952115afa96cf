"""Page: everything that the catalog knows of one head."""

import shlex

import pandas as pd
import streamlit as st

from catalog import Catalog, patterns, portrait, queries
from catalog.portrait import Portrait
from ui import charts
from ui.site import _page, _parts
from ui.site._answers import connect
from ui.site._texts import plain

PATTERN_PIXELS = 400


def show_facts(page: _page.Page, found: Portrait) -> None:
    """Where the head lies, and ways to the next ones."""
    facts = found.model
    model = facts["model"]
    depth = found.layer / max(facts["n_layers"] - 1, 1)
    st.caption(
        plain(
            f"Layer {found.layer} of {facts['n_layers']} layers, depth {depth:.2f} (0 first, 1 "
            f"last); head {found.head} of {facts['n_heads']} heads, both counted from 0. "
            f"Architecture {facts['architecture'] or 'unknown'}, "
            f"revision {facts['revision'] or 'unknown'}."
        )
    )
    steps = ((-1, "Previous", ":material/arrow_back:"), (1, "Next", ":material/arrow_forward:"))
    with st.container(horizontal=True, vertical_alignment="center"):
        for step, label, icon in steps:
            neighbour = found.neighbour(step)
            to = "" if neighbour is None else "L{}H{}".format(*neighbour)
            # No st.page_link: one to the same page leaves the address as it is.
            st.button(
                f"{label} {to}",
                icon=icon,
                disabled=neighbour is None,
                on_click=page.say,
                args=("head", to),
            )
        st.page_link(
            "site/category_map.py",
            label="Category map",
            icon=":material/grid_on:",
            query_params={"model": model},
        )


def show_labels(found: Portrait) -> None:
    st.header("Labels")
    if not len(found.labels):
        st.info(
            "No label. `heads ingest MODEL` gives labels by rule; bring others with "
            "`heads labels import FILE.csv`."
        )
        return
    labels = found.labels.pandas().fillna({"reason": ""}).drop(columns=["added_at", "run_id"])
    st.dataframe(
        # Few sources tell how sure they are.
        labels.dropna(axis="columns", how="all"),
        hide_index=True,
        width="content",
        column_config={"reason": st.column_config.TextColumn(width="large")},
    )


def show_scores(found: Portrait) -> None:
    """A table for each suite, first what the head does most among those of its model."""
    st.header("Scores")
    if not len(found.scores):
        st.info("Nothing is measured of this model yet. `heads ingest MODEL` does it.")
        return
    scores = found.scores.pandas().sort_values("model_place", ascending=False, kind="stable")
    st.caption(
        "Rank 1 is the largest value of a metric on a probe. The place is the share of the other "
        "heads, of the model or of the whole catalog, whose value is smaller. Equal values share "
        "both."
    )
    # What a head attends to is what most readers come for.
    for suite, part in sorted(scores.groupby("suite"), key=lambda one: one[0] != "patterns"):
        st.subheader(plain(str(suite)))
        st.dataframe(table(found, part), hide_index=True, column_config=SCORE_COLUMNS)


SCORE_COLUMNS = {
    "metric": st.column_config.TextColumn(width=260, pinned=True),
    "value": st.column_config.NumberColumn(format="%.4g"),
    **{
        f"place in {among}": st.column_config.ProgressColumn(
            format="%.3f", width=110, color="#4292c6"
        )
        for among in ("model", "catalog")
    },
}


def table(found: Portrait, scores: pd.DataFrame) -> pd.DataFrame:
    """Scores as they are read; where any is undefined, with the reasons."""
    undefined = scores["value"].isna()
    shown = {
        "metric": scores["metric"],
        "probe": scores["probe"],
        "value": scores["value"],
        "place in model": scores["model_place"],
        "rank in model": rank(scores, "model"),
        "place in catalog": scores["catalog_place"],
        "rank in catalog": rank(scores, "catalog"),
        "unit": scores["unit"],
        "run": scores["run_id"],
    }
    if undefined.any():
        shown["undefined"] = [
            found.why_undefined(metric, run_id) or "undefined" if is_undefined else ""
            for metric, run_id, is_undefined in zip(
                scores["metric"], scores["run_id"], undefined, strict=True
            )
        ]
    return pd.DataFrame(shown)


def rank(scores: pd.DataFrame, among: str) -> list[str | None]:
    return [
        None if pd.isna(place) else f"{place:,.0f} of {heads:,.0f}"
        for place, heads in zip(scores[f"{among}_rank"], scores[f"{among}_heads"], strict=True)
    ]


def show_salient(found: Portrait) -> None:
    """Each amplified token in one row, with what it is mapped to."""
    st.header("Salient tokens")
    if not len(found.salient):
        st.info("Not measured yet. `heads ingest MODEL --suite salient` does it.")
        return
    tokens: dict[int, dict[str, object]] = {}
    for row in found.salient:
        token = tokens.setdefault(
            row["token_rank"], {"token": repr(row["token"]), "norm": row["norm"]}
        )
        before = token.get(row["direction"])
        # Spaces belong to tokens: they are to be seen.
        token[row["direction"]] = f"{f'{before}, ' if before else ''}{row['output']!r}"
    st.dataframe(
        pd.DataFrame(list(tokens.values())),
        hide_index=True,
        column_config={
            "token": st.column_config.TextColumn("amplified token", width="medium"),
            "norm": st.column_config.NumberColumn(format="%.4g"),
            "promoted": st.column_config.TextColumn("maps it to", width="large"),
            "suppressed": st.column_config.TextColumn("and away from", width="large"),
        },
    )


def show_compositions(found: Portrait) -> None:
    st.header("Compositions")
    if not len(found.compositions):
        st.info(
            "None is known. `heads ingest MODEL --suite weights` finds the few earlier heads that "
            "each head reads most."
        )
        return
    model = found.model["model"]
    compositions = found.compositions.pandas()
    titles = {"reads": "Earlier heads that it reads", "feeds": "Later heads that it feeds"}
    for place, (link, title) in zip(st.columns(len(titles)), titles.items(), strict=True):
        part = compositions[compositions["link"] == link]
        place.subheader(title)
        if part.empty:
            place.caption("None among the few that each head reads most.")
            continue
        links = [_parts.head_address(model, name) for name in part["name"]]
        place.dataframe(
            pd.DataFrame({"head": links, "by its": part["kind"], "value": part["value"]}),
            hide_index=True,
            column_config={
                "head": _parts.head_column(),
                "value": st.column_config.NumberColumn(format="%.3f"),
            },
        )


def show_patterns(page: _page.Page, catalog: Catalog, found: Portrait) -> None:
    st.header("Stored patterns")
    if not len(found.patterns):
        st.info(
            "No pattern of this head is stored. "
            f"`heads patterns MODEL --heads {found.name} --prompt TEXT` stores one."
        )
        return
    model = found.model["model"]
    stored = found.patterns.pandas()
    st.dataframe(
        stored,
        hide_index=True,
        width="content",
        column_config={
            "prompt": st.column_config.TextColumn(width="large"),
            "n_tokens": "tokens",
            "max_error": st.column_config.NumberColumn("largest error", format="%.5f"),
            "added_at": st.column_config.DatetimeColumn("stored", format="YYYY-MM-DD HH:mm"),
            "run_id": "run",
        },
    )
    prompts = list(stored["prompt"])
    prompt = page.choose_one("prompt", prompts, default=prompts[0], complain=False)
    size = ["--pixels", str(PATTERN_PIXELS)]
    cells = patterns.cells(patterns.read(catalog, model, [found.name], prompt=prompt)).pandas()
    _parts.figure(
        charts.pattern_grid(cells, pixels=PATTERN_PIXELS),
        cells,
        f"pattern_{found.name}",
        code="from catalog import patterns\n"
        f"found = patterns.read(heads, {model!r}, [{found.name!r}], prompt={prompt!r})\n"
        "chart = charts.pattern_grid(patterns.cells(found).pandas(), "
        f"pixels={PATTERN_PIXELS})",
        command=shlex.join(["grid", model, "--heads", found.name, "--prompt", prompt, *size]),
        alt_text=f"Attention of {found.name} of {model}, query by key, on a stored prompt",
    )


def show_provenance(found: Portrait) -> None:
    st.header("Provenance")
    if not found.runs:
        st.info("No run has measured anything of this head.")
        return
    runs = pd.DataFrame(found.runs)
    st.dataframe(
        runs.drop(columns=["params", "versions", "notes"]),
        hide_index=True,
        column_config={
            "run_id": st.column_config.NumberColumn("run", width="small"),
            "started_at": st.column_config.DatetimeColumn("started", format="YYYY-MM-DD HH:mm"),
            "seconds": st.column_config.NumberColumn(format="%.1f"),
            "revision": st.column_config.TextColumn(width="medium"),
            "probe": st.column_config.TextColumn(width="medium"),
        },
    )
    # Popovers rather than expanders: what shows JSON and code, 1.7 MB of scripts, is loaded when
    # one is opened.
    with st.container(horizontal=True):
        for run in found.runs:
            with st.popover(plain(f"Run {run['run_id']}, {run['suite']}")):
                st.caption("How it was measured")
                st.json({name: run[name] for name in ("params", "versions", "notes") if run[name]})
        with st.popover("Cite", icon=":material/format_quote:"):
            st.code(portrait.citation(found), language=None, wrap_lines=True, height=400)


with _page.opened("head", "Head") as page:
    catalog = connect()
    names = [row["model"] for row in queries.models(catalog)]
    if not names:
        raise _page.NothingToShowError(_page.NO_MODEL)
    model, layer, head = page.choose_head(names)
    with st.spinner("Reading"):
        found = catalog.keep(portrait.read, model, layer, head)
    show_facts(page, found)
    show_labels(found)
    show_scores(found)
    show_salient(found)
    show_compositions(found)
    show_patterns(page, catalog, found)
    show_provenance(found)
