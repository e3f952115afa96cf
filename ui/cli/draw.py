"""Seeing: `chart` and `ui`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from catalog import Catalog, Result, patterns, queries
from catalog.errors import UsageError
from ui.cli.common import Db, messages, open_catalog, require


class Kind(StrEnum):
    """The charts."""

    MAP = "map"
    BARS = "bars"
    TOKENS = "tokens"
    GRID = "grid"


def chart(
    context: typer.Context,
    kind: Annotated[
        Kind,
        typer.Argument(
            help="map: layer x head; bars: # heads per layer bin; tokens: attention to classes; "
            "grid: stored attention patterns."
        ),
    ],
    model: Annotated[list[str], typer.Argument(help="As `heads models` names it; one or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png, .svg or .html file.")],
    taxonomy: Annotated[
        str | None, typer.Option(help="Whose labels; by default function, or what there is.")
    ] = None,
    bins: Annotated[int | None, typer.Option(min=1, help="bars: how many layer bins.")] = None,
    bin_width: Annotated[int | None, typer.Option(min=1, help="bars: layers in a bin.")] = None,
    probe: Annotated[str, typer.Option(help="tokens: on which probe.")] = "markdown",
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
    db: Db = None,
) -> None:
    """Draw models into a file: category map, layer-bin or token-class bars, or pattern grid.

    Example: heads chart map gpt2 -o map.png

    Example: heads chart bars gpt2-xl --taxonomy description_verdict --bin-width 12 -o bars.svg

    Example: heads chart tokens base tuned --layers 0,16,20,27 --unit mean -o tokens.png

    Example: heads chart grid gpt2 --heads L5H5,L6H9 --prompt "The cat sat. The cat" -o grid.html
    """
    if kind is Kind.GRID:
        if taxonomy is not None or bins is not None or bin_width is not None:
            raise UsageError("--taxonomy, --bins and --bin-width are for map and bars")
        charts = require("ui.charts", "ui")
        cells = _patterns(open_catalog(context, db), model, heads or [], prompt)
        charts.save(charts.pattern_grid(cells.pandas()), output)
        messages.print(f"{output}")
        return
    if heads or prompt is not None:
        raise UsageError("--heads and --prompt are for grid")
    if bins is not None and bin_width is not None:
        raise UsageError("--bins and --bin-width exclude each other")
    charts = require("ui.charts", "ui")
    catalog = open_catalog(context, db)
    for name in model:
        queries.require_model(catalog, name)
    if kind is Kind.TOKENS:
        _tokens(catalog, model, output, probe=probe, layers=layers, classes=classes, unit=unit)
        return
    if taxonomy is None:
        used = queries.taxonomies(catalog, *model)
        taxonomy = queries.usual_taxonomy({row["taxonomy"]: row["heads"] for row in used})
    else:
        queries.require_taxonomy(catalog, taxonomy)
    frame = queries.head_labels(catalog, model, taxonomy).pandas()
    # All labels of the taxonomy, so that colours are the same whichever models are drawn.
    labels = queries.taxonomy_labels(catalog, taxonomy)
    if kind is Kind.MAP:
        drawn = charts.category_map(frame, taxonomy=taxonomy, labels=labels)
    else:
        drawn = charts.layer_bins(
            frame, taxonomy=taxonomy, labels=labels, bins=bins, width=bin_width
        )
    charts.save(drawn, output)
    messages.print(f"{output}")


def _tokens(
    catalog: Catalog,
    models: list[str],
    output: Path,
    *,
    probe: str,
    layers: str | None,
    classes: str | None,
    unit: str,
) -> None:
    charts = require("ui.charts", "ui")
    chosen = charts.DEFAULT_CLASSES if classes is None else tuple(_parts(classes))
    try:
        numbers = None if layers is None else [int(number) for number in _parts(layers)]
    except ValueError:
        raise UsageError(f"--layers {layers!r}: expected numbers, as in 0,16,20,27") from None
    frame = queries.token_totals(catalog, models, probe, layers=numbers, classes=chosen).pandas()
    charts.save(charts.token_bars(frame, unit=unit, layers=numbers, classes=chosen), output)
    messages.print(f"{output}")


def _parts(listed: str) -> list[str]:
    """What stands between commas, each once."""
    return list(dict.fromkeys(part.strip() for part in listed.split(",") if part.strip()))


def _patterns(
    catalog: Catalog, models: Sequence[str], heads: Sequence[str], prompt: str | None
) -> Result:
    if len(heads) not in {0, 1, len(models)}:
        raise UsageError(
            f"--heads is given {len(heads)} times for {len(models)} models; "
            "give it once for all, or once for each"
        )
    each = list(heads) if len(heads) > 1 else list(heads) * len(models)
    found = []
    for place, name in enumerate(models):
        found += patterns.read(catalog, name, each[place : place + 1], prompt=prompt)
    return patterns.cells(found)


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
