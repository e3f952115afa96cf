"""Asking the catalog: `sql`, `metrics`, `top`, `show`."""

import re
import signal
from typing import Annotated, Any

import pyarrow as pa
import typer

from catalog import Catalog, Result, queries
from catalog.errors import UsageError
from ui.cli.common import Db, FormatOption, OutputOption, messages, open_catalog, write

_HEAD = re.compile(r"L(?P<layer>\d+)H(?P<head>\d+)", re.IGNORECASE)


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="One SELECT over the catalog's views.")],
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Ask in SQL, reading only.

    Views: models, heads, metrics, scores, labels, taxonomies, runs, probes, relations, and
    score_runs, which also has the scores of runs that a later run has replaced.

    Example: heads sql "SELECT layer, head, value FROM scores WHERE metric = 'induction'
    ORDER BY value DESC LIMIT 5" --format csv
    """
    catalog = open_catalog(context, db)
    # While DuckDB computes, Python handles no signal; reading leaves nothing to be put right.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.SIG_DFL)
    write(catalog.sql(query), form, output)


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
    model: Annotated[str | None, typer.Option(help="Only heads of this model.")] = None,
    probe: Annotated[
        str | None, typer.Option(help="Measured on this probe; by default the usual one.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many heads.")] = 10,
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
    model: Annotated[str, typer.Argument(help="As `heads models` names it.")],
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
    facts = queries.require_model(catalog, model)
    write(
        _of_model(catalog, model) if head is None else _of_head(catalog, facts, head), form, output
    )


def _of_head(catalog: Catalog, facts: dict[str, Any], name: str) -> Result:
    match = _HEAD.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no head; write it like L5H3, layer and head from 0")
    layer, head = int(match["layer"]), int(match["head"])
    if layer >= facts["n_layers"] or head >= facts["n_heads"]:
        raise UsageError(
            f"{facts['model']} has {facts['n_layers']} layers of {facts['n_heads']} heads, "
            f"counted from 0, and no {name}"
        )
    return queries.head(catalog, facts["model"], layer, head)


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
    for command in (sql, metrics, top, show):
        app.command()(command)
