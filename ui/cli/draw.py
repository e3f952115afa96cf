"""Seeing: `chart` and `ui`."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from catalog import Catalog, Result, patterns, queries, sandbox
from catalog.errors import UsageError
from ui.cli import draw_scores
from ui.cli.common import (
    Db,
    ThresholdsOption,
    messages,
    open_catalog,
    require,
    thresholds,
)


class Kind(StrEnum):
    """The charts."""

    MAP = "map"
    BARS = "bars"
    TOKENS = "tokens"
    GRID = "grid"
    SQL = "sql"
    METRIC = draw_scores.METRIC
    HISTOGRAM = draw_scores.HISTOGRAM
    SCATTER = draw_scores.SCATTER
    DEPTH = draw_scores.DEPTH
    DIFFERENCE = draw_scores.DIFFERENCE


def chart(
    context: typer.Context,
    kind: Annotated[
        Kind,
        typer.Argument(
            help="map: layer x head; bars: # heads per layer bin; tokens: attention to classes; "
            "grid: stored attention patterns; sql: the answer to a query; metric: a score as layer "
            "x head; histogram: heads by score; scatter: by two; depth: mean score by relative "
            "depth; difference: a score in the second model less that in the first."
        ),
    ],
    model: Annotated[
        list[str], typer.Argument(help="As `heads models` names it; one or more. sql: the query.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .png, .svg, .pdf or .html file.")
    ],
    taxonomy: Annotated[
        str | None, typer.Option(help="Whose labels; by default function, or what there is.")
    ] = None,
    set_: ThresholdsOption = None,
    bins: Annotated[
        int | None, typer.Option(min=1, help="bars, depth: how many bins of layers or of depth.")
    ] = None,
    bin_width: Annotated[int | None, typer.Option(min=1, help="bars: layers in a bin.")] = None,
    shares: Annotated[
        bool, typer.Option("--shares", help="bars: shares of labelled heads instead of numbers.")
    ] = False,
    probe: Annotated[
        str | None,
        typer.Option(
            help="tokens: on which probe, markdown unless told; of scores: the usual one."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="tokens: which, as 0,16,20,27; four unless told.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="tokens: which; hash,star,whitespace unless told.")
    ] = None,
    unit: Annotated[str, typer.Option(help="tokens: sum or mean over a layer's heads.")] = "sum",
    heads: Annotated[
        list[str] | None,
        typer.Option(
            help="grid: such as L5H5,L6H9, for all models or, repeated, for each in turn; "
            "by default all that are stored."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="grid: text or name of the prompt.")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="grid: a part of the prompt, such as 64-127."),
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="grid: how many heads stand side by side.")
    ] = None,
    pixels: Annotated[
        int | None, typer.Option(min=16, help="grid: about, of a heatmap's side.")
    ] = None,
    marks: Annotated[str, typer.Option(help="sql: bars, points or heat map.")] = "bars",
    x: Annotated[str | None, typer.Option(help="sql: column; the first unless told.")] = None,
    y: Annotated[str | None, typer.Option(help="sql: column; the last unless told.")] = None,
    colour: Annotated[str | None, typer.Option(help="sql: column.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="metric, histogram, scatter, depth, difference: which score.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="scatter: the other metric.")] = None,
    against_probe: Annotated[str | None, typer.Option(help="scatter: on which probe.")] = None,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="metric: colours go as far as the scores do.")
    ] = False,
    all_models: Annotated[
        bool, typer.Option("--all-models", help="depth: beside all models together.")
    ] = False,
    db: Db = None,
) -> None:
    """Draw models into a file: category map, layer-bin or token-class bars, pattern grid, scores.

    Example: heads chart map gpt2 -o map.png

    Example: heads chart map gpt2 --taxonomy role --set induction=0.3 -o moved.png

    Example: heads chart bars gpt2-xl --taxonomy description_verdict --bin-width 12 -o bars.svg

    Example: heads chart tokens base tuned --layers 0,16,20,27 --unit mean -o tokens.png

    Example: heads chart metric gpt2 --metric induction -o induction.png

    Example: heads chart difference base tuned --metric induction -o change.pdf

    Example: heads chart sql "SELECT layer, head, value FROM scores WHERE metric = 'induction'"
    --marks "heat map" --x layer --y head --colour value -o answer.png

    Example: heads chart grid gpt2 --heads L5H5,L6H9 --prompt "The cat sat. The cat" -o grid.html
    """
    is_labelled = taxonomy is not None or bin_width is not None or bins is not None
    if kind is Kind.GRID and is_labelled:
        raise UsageError("--taxonomy, --bins and --bin-width are for map and bars")
    if kind is not Kind.GRID and (heads or prompt is not None or tokens or columns):
        raise UsageError("--heads, --prompt, --tokens and --columns are for grid")
    if set_ and kind not in {Kind.MAP, Kind.BARS}:
        raise UsageError("--set is for map and bars")
    if bins is not None and bin_width is not None:
        raise UsageError("--bins and --bin-width exclude each other")
    charts = require("ui.charts", "ui")
    catalog = open_catalog(context, db)
    if kind is Kind.GRID:
        cells = _patterns(catalog, model, heads or [], prompt, tokens).pandas()
        sized = {} if pixels is None else {"pixels": pixels}
        drawn = charts.pattern_grid(cells, across=columns, **sized)
    elif kind is Kind.SQL:
        drawn = _answer(catalog, model, marks, x, y, colour)
    else:
        for name in model:
            queries.require_model(catalog, name)
        if kind is Kind.TOKENS:
            drawn = _tokens(
                catalog, model, probe=probe or "markdown", layers=layers, classes=classes, unit=unit
            )
        elif kind in {Kind.MAP, Kind.BARS}:
            sizes = {"bins": bins, "width": bin_width, "shares": shares}
            drawn = _labels(catalog, kind, model, taxonomy, thresholds(set_), **sizes)
        else:
            asked = draw_scores.Asked(metric, probe, against, against_probe)
            drawn = draw_scores.drawn(
                catalog, kind, model, asked, bins=bins, stretch=stretch, all_models=all_models
            )
    charts.save(drawn, output)
    messages.print(f"{output}")


def _answer(
    catalog: Catalog,
    asked: list[str],
    marks: str,
    x: str | None,
    y: str | None,
    colour: str | None,
) -> Any:
    charts = require("ui.charts", "ui")
    if len(asked) != 1:
        raise UsageError(f"sql takes one query, got {len(asked)} arguments; put it into quotes")
    if marks not in charts.RESULT_KINDS:
        raise UsageError(f"--marks {marks!r}: expected {', '.join(charts.RESULT_KINDS)}")
    frame = sandbox.ask(catalog.database, asked[0]).result.pandas()
    columns = [str(column) for column in frame]
    for column in filter(None, (x, y, colour)):
        if column not in columns:
            raise UsageError(f"the answer has no column {column!r}, but {', '.join(columns)}")
    return charts.result_chart(
        frame, kind=marks, x=x or columns[0], y=y or columns[-1], colour=colour
    )


def _labels(
    catalog: Catalog,
    kind: Kind,
    models: list[str],
    taxonomy: str | None,
    moved: Mapping[str, float],
    **sizes: int | None,
) -> Any:
    charts = require("ui.charts", "ui")
    if taxonomy is None:
        used = queries.taxonomies(catalog, *models)
        taxonomy = queries.usual_taxonomy({row["taxonomy"]: row["heads"] for row in used})
    else:
        queries.require_taxonomy(catalog, taxonomy)
    frame = queries.head_labels(catalog, models, taxonomy).pandas()
    if moved:
        rules = _moved(queries.rules(catalog, taxonomy), moved, taxonomy)
        scores = queries.rule_scores(catalog, models, [rule["metric"] for rule in rules]).pandas()
        frame = charts.relabel(frame, scores, rules)
    # All labels of the taxonomy, so that colours are the same whichever models are drawn.
    labels = queries.taxonomy_labels(catalog, taxonomy)
    if kind is Kind.MAP:
        return charts.category_map(frame, taxonomy=taxonomy, labels=labels)
    return charts.layer_bins(frame, taxonomy=taxonomy, labels=labels, **sizes)


def _moved(
    rules: Sequence[dict[str, Any]], moved: Mapping[str, float], taxonomy: str
) -> list[dict[str, Any]]:
    """The rules with other thresholds."""
    known = [rule["metric"] for rule in rules]
    for metric in moved:
        if metric not in known:
            raise UsageError(
                f"--set {metric}: {taxonomy} has rules about {', '.join(known) or 'nothing'}"
            )
    return [rule | {"threshold": moved.get(rule["metric"], rule["threshold"])} for rule in rules]


def _tokens(
    catalog: Catalog,
    models: list[str],
    *,
    probe: str,
    layers: str | None,
    classes: str | None,
    unit: str,
) -> Any:
    charts = require("ui.charts", "ui")
    chosen = charts.DEFAULT_CLASSES if classes is None else tuple(_parts(classes))
    try:
        numbers = None if layers is None else [int(number) for number in _parts(layers)]
    except ValueError:
        raise UsageError(f"--layers {layers!r}: expected numbers, as in 0,16,20,27") from None
    frame = queries.token_totals(catalog, models, probe, layers=numbers, classes=chosen).pandas()
    return charts.token_bars(frame, unit=unit, layers=numbers, classes=chosen)


def _parts(listed: str) -> list[str]:
    """What stands between commas, each once."""
    return list(dict.fromkeys(part.strip() for part in listed.split(",") if part.strip()))


def _patterns(
    catalog: Catalog,
    models: Sequence[str],
    heads: Sequence[str],
    prompt: str | None,
    tokens: str | None,
) -> Result:
    ends = re.fullmatch(r"(\d{1,7})-(\d{1,7})", tokens or "0-9999999")
    if ends is None or int(ends[1]) >= int(ends[2]):
        raise UsageError(f"--tokens {tokens!r}: expected two positions from 0, as in 64-127")
    if len(heads) not in {0, 1, len(models)}:
        raise UsageError(
            f"--heads is given {len(heads)} times for {len(models)} models; "
            "give it once for all, or once for each"
        )
    each = list(heads) if len(heads) > 1 else list(heads) * len(models)
    found = []
    for place, name in enumerate(models):
        found += patterns.read(catalog, name, each[place : place + 1], prompt=prompt)
    return patterns.cells(found, first=int(ends[1]), last=int(ends[2]))


def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Of the page.")] = 8501,
    address: Annotated[
        str, typer.Option(help="Interface to listen on; others than loopback show it to others.")
    ] = "127.0.0.1",
    db: Db = None,
) -> None:
    """Open the page in a browser; ends with Ctrl-C.

    Example: heads ui --port 8600
    """
    launch = require("ui.launch", "ui")
    catalog = open_catalog(context, db)
    raise typer.Exit(launch.serve(catalog.database, port=port, address=address))


def add_to(app: typer.Typer) -> None:
    app.command()(chart)
    app.command()(ui)
