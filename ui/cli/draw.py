"""Seeing: `chart` and `ui`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from catalog import queries
from catalog.errors import UsageError
from ui.cli.common import Db, messages, open_catalog, require


class Kind(StrEnum):
    """The charts."""

    MAP = "map"
    BARS = "bars"


def chart(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="map: layer x head; bars: # heads per layer bin.")],
    model: Annotated[list[str], typer.Argument(help="As `heads models` names it; one or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png, .svg or .html file.")],
    taxonomy: Annotated[
        str | None, typer.Option(help="Whose labels; by default function, or what there is.")
    ] = None,
    bins: Annotated[int | None, typer.Option(min=1, help="bars: how many layer bins.")] = None,
    bin_width: Annotated[int | None, typer.Option(min=1, help="bars: layers in a bin.")] = None,
    db: Db = None,
) -> None:
    """Draw the category map or the layer-bin bars of one or more models into a file.

    Example: heads chart map gpt2 -o map.png

    Example: heads chart bars gpt2-xl --taxonomy description_verdict --bin-width 12 -o bars.svg
    """
    if bins is not None and bin_width is not None:
        raise UsageError("--bins and --bin-width exclude each other")
    charts = require("ui.charts", "ui")
    catalog = open_catalog(context, db)
    for name in model:
        queries.require_model(catalog, name)
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
