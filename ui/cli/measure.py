"""Measuring models: `ingest`, `composition-matrix`."""

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from catalog import Result
from catalog.errors import UsageError
from catalog.jobs import Submitted
from ui.cli import options
from ui.cli.common import (
    Db,
    FormatOption,
    OutputOption,
    messages,
    open_catalog,
    require,
    write,
)


class _Shown:
    """Progress as bars on stderr: what is done stays, what is under way moves."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        self._bars.update(self._task, description=text, total=None, completed=0)

    def steps(self, text: str, total: int) -> None:
        self._bars.reset(self._task, description=text, total=total)

    def advance(self) -> None:
        self._bars.advance(self._task)

    def note(self, text: str) -> None:
        self._bars.console.print(text)


@contextlib.contextmanager
def shown_progress() -> Iterator[_Shown]:
    """Progress as bars, for one piece of work."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=messages, transient=True) as bars:
        yield _Shown(bars)


def tell_of(submitted: Submitted) -> None:
    """Say which job a request has become; its id is the command's output."""
    job = submitted.job
    state = f"in queue {job.queue}" if submitted.is_new else f"{job.state} already"
    messages.print(f"job {job.id}: {job.suite} of {job.model}, {state}")
    print(job.id)  # noqa: T201 - the command's own output


def ingest(
    context: typer.Context,
    model: Annotated[
        list[str], typer.Argument(help="A folder, a .gguf file or a Hub id (ORGANISATION/NAME).")
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="relations, weights, salient, patterns or dynamic; may be repeated."),
    ] = None,
    revision: options.Revision = None,
    name: options.Name = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    relations: options.Relations = None,
    probe: options.Probe = None,
    token_class: options.TokenClasses = None,
    only: options.Only = False,
    force: options.Force = False,
    first_mlp: Annotated[
        bool, typer.Option(help="From weights: later layers read the first MLP's output.")
    ] = True,
    allow_pickle: options.AllowPickle = False,
    in_queue: Annotated[
        bool, typer.Option("--queue", help="Leave it to workers: a job per model and suite.")
    ] = False,
    queue_name: options.QueueName = None,
    db: Db = None,
) -> None:
    """Measure every head of a model and write the scores into the catalog.

    What has been measured already, on the same contents, is left as it is.

    Work on weights goes layer by layer, and where it was stopped it goes on.

    Example: heads ingest ./my-model --suite relations --suite weights

    Example: heads ingest HuggingFaceTB/SmolLM2-135M --revision main

    Example: heads ingest model.gguf --relations my_relations --only

    Example: heads ingest ./my-model --suite patterns --token-class "bracket=[()]"

    Example: heads ingest HuggingFaceTB/SmolLM2-135M ./my-model --queue
    """
    if queue_name is not None and not in_queue:
        raise UsageError("--queue-name needs --queue")
    asked = require("ingest.request", "ingest")
    if name is not None and len(model) > 1:
        raise UsageError("--name is for one model; several were given")
    requests = [
        asked.IngestRequest(
            model=one,
            suites=tuple(suite or ()),
            name=name,
            revision=revision,
            device=device,
            dtype=dtype,
            relations=str(relations) if relations else None,
            probe=str(probe) if probe else None,
            only=only,
            token_classes=tuple(token_class or ()),
            force=force,
            first_mlp=first_mlp,
            allow_pickle=allow_pickle,
        )
        for one in model
    ]
    catalog = open_catalog(context, db, create=True)
    if in_queue:
        submit = require("ingest.service.submit", "service").submit
        for request in requests:
            for one in submit(catalog, request, queue=queue_name, tell=messages.print):
                tell_of(one)
        return
    run = require("ingest.run", "ingest")
    for request in requests:
        with shown_progress() as progress:
            outcomes = run.ingest(catalog, request, progress)
        for outcome in outcomes:
            runs = ", ".join(map(str, outcome.run_ids))
            messages.print(
                f"{outcome.model}: {outcome.suite} published as run {runs}"
                if outcome.is_new
                else f"{outcome.model}: {outcome.suite} is there already (run {runs}); nothing "
                "done, --force measures again"
            )


def composition_matrix(
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file or a Hub id (ORGANISATION/NAME).")
    ],
    kind: Annotated[
        str | None, typer.Option(help="query, key or value; all three by default.")
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Only heads of this layer read.")] = None,
    from_layer: Annotated[
        int | None, typer.Option(min=0, help="Only heads of this layer write.")
    ] = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Composition scores of all pairs of heads, computed now from a checkpoint.

    The catalog keeps each head's strongest (`heads composition`); these are all.

    Example: heads composition-matrix model.gguf --kind key --layer 18 -o key18.parquet
    """
    compose = require("ingest.compose", "ingest")
    with shown_progress() as progress:
        table = compose.composition_matrix(
            model,
            kind=kind,
            layer=layer,
            from_layer=from_layer,
            revision=revision,
            device=device,
            progress=progress,
        )
    write(Result(table), form, output)


def add_to(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command("composition-matrix")(composition_matrix)
