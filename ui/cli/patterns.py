"""Whole attention patterns: `patterns`, `patterns-list`, `patterns-show`, `patterns-delete`."""

from pathlib import Path
from typing import Annotated

import typer

from catalog import patterns as stored
from ui.cli.common import Db, FormatOption, OutputOption, messages, open_catalog, require, write
from ui.cli.measure import shown_progress

ModelArgument = Annotated[str, typer.Argument(help="As `heads models` names it.")]
HeadsOption = Annotated[
    list[str] | None,
    typer.Option(help="Such as L5H5,L6H9 (or L5, a whole layer); by default all that are stored."),
]
PromptOption = Annotated[str | None, typer.Option(help="Text or name of the prompt.")]


def patterns(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file or a Hub id (ORGANISATION/NAME).")
    ],
    heads: Annotated[list[str], typer.Option(help="Such as L5H5,L6H9; or L5, a whole layer.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text; may be repeated.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL, as `heads ingest --probe` takes it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    name: Annotated[str | None, typer.Option(help="What the catalog shall call it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is there.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Unpickle weights; can run any code in them.")
    ] = False,
    db: Db = None,
) -> None:
    """Store the whole attention patterns of some heads on some prompts.

    Every number from query to key is kept, to the nearest float16, with the prompt's tokens.

    Example: heads patterns ./gpt2 --heads L5H5,L6H9 --prompt "The cat sat. The cat"
    """
    capture = require("ingest.capture", "ingest")
    request = capture.CaptureRequest(
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
    catalog = open_catalog(context, db, create=True)
    with shown_progress() as progress:
        done = capture.capture(catalog, request, progress)
    runs = ", ".join(map(str, done.run_ids))
    there = f", {done.known} there already" if done.known else ""
    messages.print(f"{done.model}: {done.stored} patterns stored{there} (run {runs})")


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
