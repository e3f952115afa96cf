"""Asking the catalog: in SQL, by metric, by head, by token."""

import re
import signal
from typing import Annotated

import pyarrow as pa
import typer

from catalog import Catalog, Result, queries, sandbox
from catalog.errors import UsageError
from ui.cli.common import Db, FormatOption, OutputOption, messages, open_catalog, write

_HEAD = re.compile(r"L(?P<layer>\d{1,6})H(?P<head>\d{1,6})", re.IGNORECASE)

ModelArgument = Annotated[str, typer.Argument(help="As `heads models` names it.")]
HeadArgument = Annotated[str, typer.Argument(help="Such as L5H3, layer and head from 0.")]
TextArgument = Annotated[
    str, typer.Argument(help="A token as it is written, with the space before it if it has one.")
]
OfModel = Annotated[str | None, typer.Option("--model", help="Only heads of this model.")]
Number = Annotated[int, typer.Option("-n", help="How many heads.")]


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="One SELECT over the catalog's views.")],
    safe: Annotated[
        bool,
        typer.Option(
            "--safe",
            help="Only the views, within the page's limits (HEADS_SQL_SECONDS, _ROWS, _MEMORY): "
            "for queries that others wrote.",
        ),
    ] = False,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Ask in SQL, reading only.

    Views: models, heads, metrics, scores, vectors, compositions, salient_operations,
    stored_patterns, prompt_tokens, relation_correlations, labels, taxonomies, runs, probes,
    relations, and score_runs, which also has the scores of runs that a later run has replaced.

    Example: heads sql "SELECT layer, head, value FROM scores WHERE metric = 'induction'
    ORDER BY value DESC LIMIT 5" --format csv

    Example: heads sql --safe "$(cat query-of-somebody.sql)"
    """
    if safe:
        answer = sandbox.ask(open_catalog(context, db).database, query)
        if answer.notice:
            messages.print(answer.notice)
        write(answer.result, form, output)
        return
    # While DuckDB computes, Python handles no signal; reading leaves nothing to be put right.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.SIG_DFL)
    write(open_catalog(context, db).sql(query), form, output)


def metrics(
    context: typer.Context,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """List the metrics that have been measured, with unit, range and source.

    Example: heads metrics --format json
    """
    write(queries.metrics(open_catalog(context, db)), form, output)


def top(
    context: typer.Context,
    metric: Annotated[str, typer.Argument(help="As `heads metrics` names it.")],
    model: OfModel = None,
    probe: Annotated[
        str | None, typer.Option(help="Measured on this probe; by default the usual one.")
    ] = None,
    n: Number = 10,
    lowest: Annotated[bool, typer.Option("--lowest", help="Smallest first.")] = False,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Heads with the largest score of a metric, over all models or in one.

    Example: heads top induction -n 5

    Example: heads top "relation_score[country_to_capital]" --model gpt2
    """
    catalog = open_catalog(context, db)
    probes = queries.probes_of(catalog, metric)
    if probe is None:
        probe, *others = probes
        if others:
            messages.print(f"on probe {probe} (also measured on {', '.join(others)}: --probe)")
    elif probe not in probes:
        raise UsageError(f"{metric} was not measured on {probe!r}, but on {', '.join(probes)}")
    if model is not None:
        queries.require_model(catalog, model)
    result = queries.top(catalog, metric, probe=probe, model=model, limit=n, lowest=lowest)
    write(result, form, output)


def show(
    context: typer.Context,
    model: ModelArgument,
    head: Annotated[str | None, typer.Argument(help="A head, such as L5H3.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """What the catalog knows of a model, or of one of its heads.

    Example: heads show gpt2

    Example: heads show gpt2 L5H1 --format json
    """
    catalog = open_catalog(context, db)
    if head is None:
        queries.require_model(catalog, model)
        write(_of_model(catalog, model), form, output)
        return
    layer, number = _place(head)
    queries.require_head(catalog, model, layer, number)
    write(queries.head(catalog, model, layer, number), form, output)


def salient(
    context: typer.Context,
    model: ModelArgument,
    head: HeadArgument,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """The tokens that a head amplifies most, and the outputs that it maps each to.

    Example: heads salient gpt2 L9H8

    Example: heads salient gpt2 L9H8 --format csv -o salient.csv
    """
    write(queries.salient(open_catalog(context, db), model, *_place(head)), form, output)


def writes(
    context: typer.Context,
    text: TextArgument,
    model: OfModel = None,
    suppressed: Annotated[
        bool, typer.Option("--suppressed", help="The heads that suppress it instead.")
    ] = False,
    n: Number = 20,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Which heads, in which models, promote a token: for the tokens that they amplify most.

    Example: heads writes " Paris"

    Example: heads writes " Paris" --model gpt2 --suppressed --format json
    """
    catalog = open_catalog(context, db)
    found = queries.writing(catalog, text, model=model, suppressed=suppressed, limit=n)
    write(found, form, output)


def reads(
    context: typer.Context,
    text: TextArgument,
    model: OfModel = None,
    n: Number = 20,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Which heads, in which models, amplify a token most, and what they promote for it.

    Example: heads reads " France"

    Example: heads reads " France" --model gpt2 -n 5
    """
    write(queries.reading(open_catalog(context, db), text, model=model, limit=n), form, output)


def composition(
    context: typer.Context,
    model: ModelArgument,
    head: HeadArgument,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Which earlier heads a head reads by query, key or value, and which later heads read it.

    Example: heads composition gpt2 L5H1
    """
    write(queries.compositions(open_catalog(context, db), model, *_place(head)), form, output)


def correlations(
    context: typer.Context,
    model: ModelArgument,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """How far relation scores of weights hold in a run: Pearson's r, relation by relation.

    Needs the suites relations and dynamic on the same relation set.

    Example: heads correlations gpt2

    Example: heads correlations gpt2 --format csv -o correlations.csv
    """
    write(queries.relation_correlations(open_catalog(context, db), model), form, output)


def _place(name: str) -> tuple[int, int]:
    match = _HEAD.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no head; write it like L5H3, layer and head from 0")
    return int(match["layer"]), int(match["head"])


def _of_model(catalog: Catalog, model: str) -> Result:
    """Facts one under the other: a model has more of them than a screen has columns."""
    facts = [
        {"what": name, "value": None if value is None else str(value)}
        for name, value in queries.model(catalog, model).rows()[0].items()
    ]
    facts += [
        {"what": f"label {row['taxonomy']}/{row['label']}", "value": f"{row['heads']} heads"}
        for row in queries.label_counts(catalog, model)
    ]
    facts += [
        {
            "what": f"run {row['run_id']}",
            "value": f"{row['suite']} on {row['probe']}: {row['status']}"
            + (f", {row['error']}" if row["error"] else ""),
        }
        for row in queries.runs(catalog, model)
    ]
    return Result(pa.Table.from_pylist(facts))


def add_to(app: typer.Typer) -> None:
    for command in (sql, metrics, top, show, salient, writes, reads, composition, correlations):
        app.command()(command)
