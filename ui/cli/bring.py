"""Models known by their layout and labels made by people: `models`, `labels`, `classify`."""

from pathlib import Path
from typing import Annotated

import typer

from catalog import people, publishing, queries
from catalog.declarations import ModelSpec
from ingest.classify import with_thresholds
from ui.cli.common import (
    Db,
    FormatOption,
    OutputOption,
    ThresholdsOption,
    messages,
    open_catalog,
    thresholds,
    write,
)

models = typer.Typer(help="List the models, or add one by its layout.", no_args_is_help=False)
labels = typer.Typer(help="Labels made by people or published elsewhere.", no_args_is_help=True)


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """List the models in the catalog.

    Example: heads models --format csv -o models.csv
    """
    if context.invoked_subcommand is None:
        write(queries.models(open_catalog(context, db)), form, output)


@models.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the catalog shall call it.")],
    layers: Annotated[int, typer.Option(help="Number of layers.")],
    heads: Annotated[int, typer.Option(help="Number of query heads in a layer.")],
    kv_heads: Annotated[int | None, typer.Option(help="Number of KV heads in a layer.")] = None,
    architecture: Annotated[str | None, typer.Option(help="Such as gpt2 or llama.")] = None,
    db: Db = None,
) -> None:
    """Make a model known by its layout alone, so that labels can be given to its heads.

    Example: heads models add gpt2-xl --layers 48 --heads 25
    """
    catalog = open_catalog(context, db, create=True)
    spec = ModelSpec(
        name=name,
        revision=None,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        architecture=architecture,
    )
    people.add_layout(catalog.database, spec)
    messages.print(f"{name}: {layers} layers of {heads} heads")


@labels.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV: model, layer, head, taxonomy, label.")],
    source: Annotated[
        str, typer.Option(help="Of lines that state none: human, model or published.")
    ] = "human",
    reviewer: Annotated[str | None, typer.Option(help="Who says so; kept with each label.")] = None,
    db: Db = None,
) -> None:
    """Bring labels from a CSV file, all of its lines or none.

    Optional columns are source (human, model, published) and confidence (0 to 1).

    Example: heads labels import verdicts.csv --source published
    """
    catalog = open_catalog(context, db, create=True)
    done = people.import_labels(catalog.database, file, source=source, reviewer=reviewer)
    messages.print(f"{done.added} labels added, {done.known} known already")


def classify(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Argument(help="Models; all of the catalog where none is named.")
    ] = None,
    taxonomy: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For every rule of the taxonomies chosen.")
    ] = None,
    set_: ThresholdsOption = None,
    db: Db = None,
) -> None:
    """Apply the labelling rules again, with other thresholds, without running a model.

    Example: heads classify --taxonomy function --threshold 0.2

    Example: heads classify gpt2 --set induction=0.3
    """
    catalog = open_catalog(context, db)
    specs = with_thresholds(taxonomy or (), threshold, thresholds(set_))
    names = model or [row["model"] for row in queries.models(catalog)]
    for name in names:
        queries.require_model(catalog, name)
    for name in names:
        counts = publishing.classify(catalog.database, name, specs)
        told = ", ".join(f"{count} {taxonomy}" for taxonomy, count in counts.items())
        messages.print(f"{name}: {told} labels")


def add_to(app: typer.Typer) -> None:
    app.add_typer(models, name="models")
    app.add_typer(labels, name="labels")
    app.command()(classify)
