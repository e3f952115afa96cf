"""Whole attention patterns: `patterns`, `patterns-list`, `patterns-show`, `patterns-delete`."""

from pathlib import Path
from typing import Annotated

import typer

from catalog import Catalog, queries
from catalog import patterns as stored
from catalog.errors import UsageError
from catalog.sources import Checkpoint, checkpoint
from ui.cli import options
from ui.cli.common import Db, FormatOption, OutputOption, messages, open_catalog, require, write
from ui.cli.measure import shown_progress, tell_of

ModelArgument = Annotated[str, typer.Argument(help="As `heads models` names it.")]
HeadsOption = Annotated[
    list[str] | None,
    typer.Option(help="Such as L5H5,L6H9 (or L5, a whole layer); by default all that are stored."),
]
PromptOption = Annotated[str | None, typer.Option(help="Text or name of the prompt.")]


def patterns(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a .gguf file, what the catalog calls a model, or a Hub id "
            "(ORGANISATION/NAME)."
        ),
    ],
    heads: Annotated[list[str], typer.Option(help="Such as L5H5,L6H9; or L5, a whole layer.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text; may be repeated.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL, as `heads ingest --probe` takes it.")
    ] = None,
    revision: options.Revision = None,
    name: options.Name = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    force: options.Force = False,
    allow_pickle: options.AllowPickle = False,
    in_queue: Annotated[
        bool, typer.Option("--queue", help="Leave it to workers, as one job.")
    ] = False,
    queue_name: options.QueueName = None,
    db: Db = None,
) -> None:
    """Store the whole attention patterns of some heads on some prompts.

    Every number from query to key is kept, to the nearest float16, with the prompt's tokens.

    Example: heads patterns ./gpt2 --heads L5H5,L6H9 --prompt "The cat sat. The cat"

    Of a model that the catalog has, by its name, the very checkpoint is read that was measured.

    Example: heads patterns openai-community/gpt2 --heads L5 --prompt "The cat sat" --queue
    """
    if queue_name is not None and not in_queue:
        raise UsageError("--queue-name needs --queue")
    catalog = open_catalog(context, db, create=True)
    if known := _known(catalog, model):
        model, name, revision = known.model, name or model, revision or known.revision
    request = require("ingest.request", "ingest").CaptureRequest(
        model=model,
        heads=",".join(heads),
        prompts=tuple(prompt or ()),
        prompt_file=str(prompt_file) if prompt_file else None,
        name=name,
        revision=revision,
        device=device,
        dtype=dtype,
        force=force,
        allow_pickle=allow_pickle,
    )
    if in_queue:
        submit = require("ingest.service.submit", "service").submit_patterns
        tell_of(submit(catalog, request, queue=queue_name, tell=messages.print))
        return
    capture = require("ingest.capture", "ingest").capture
    with shown_progress() as progress:
        done = capture(catalog, request, progress)
    runs = ", ".join(map(str, done.run_ids))
    there = f", {done.known} there already" if done.known else ""
    messages.print(f"{done.model}: {done.stored} patterns stored{there} (run {runs})")


def _known(catalog: Catalog, name: str) -> Checkpoint | None:
    """What a model of the catalog was read from, unless the name is a file's or a folder's."""
    if Path(name).exists():
        return None
    rows = (row for row in queries.models(catalog) if row["model"] == name)
    return next((checkpoint(row["source"], row["revision"]) for row in rows), None)


def patterns_list(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Only of this model.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """List the stored patterns, with their prompts and bytes.

    Example: heads patterns-list gpt2
    """
    write(stored.stored(open_catalog(context, db), model), form, output)


def patterns_show(
    context: typer.Context,
    model: ModelArgument,
    heads: HeadsOption = None,
    prompt: PromptOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """The numbers of stored patterns: one row per query and key, with their tokens.

    Example: heads patterns-show gpt2 --heads L5H5 -o l5h5.parquet
    """
    found = stored.read(open_catalog(context, db), model, heads or (), prompt=prompt)
    write(stored.cells(found), form, output)


def patterns_delete(
    context: typer.Context,
    model: ModelArgument,
    heads: HeadsOption = None,
    prompt: PromptOption = None,
    db: Db = None,
) -> None:
    """Delete stored patterns of a model: all, or of some heads, or on one prompt.

    Example: heads patterns-delete gpt2 --heads L5H5 --prompt "The cat sat. The cat"
    """
    gone = stored.delete(open_catalog(context, db), model, heads or (), prompt=prompt)
    messages.print(f"{model}: {gone.patterns} patterns deleted, {gone.n_bytes:,} bytes")


def add_to(app: typer.Typer) -> None:
    app.command()(patterns)
    app.command("patterns-list")(patterns_list)
    app.command("patterns-show")(patterns_show)
    app.command("patterns-delete")(patterns_delete)
