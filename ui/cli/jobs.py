"""The queue: `jobs`, and `show`, `cancel`, `retry`, `watch`, `workers` and `prune` of it."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from catalog.jobs import Job, JobStore, Past, State, listing, open_store
from ui.cli.common import Db, FormatOption, OutputOption, messages, open_catalog, write
from ui.queueing import nudge

group = typer.Typer(help="The queue: what is measured, by whom, and how far it is.")

JobArgument = Annotated[int, typer.Argument(metavar="ID", help="As `heads jobs` numbers it.")]
JobArguments = Annotated[list[int], typer.Argument(metavar="ID...", help="Of `heads jobs`.")]

_SHOWN = ("id", "model", "suite", "state", "progress", "expected_end", "worker")


@group.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context,
    state: Annotated[
        list[State] | None, typer.Option(help="Only such jobs; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many, the newest first.")] = 50,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """List the jobs, with what each is at and when that is expected to end.

    Example: heads jobs --state running --state queued

    Example: heads jobs --model gpt2 --format json
    """
    if context.invoked_subcommand is not None:
        return
    store = _store(context, db)
    found = store.list(states=state or (), model=model, limit=n)
    if not found:
        messages.print("there is no such job; `heads ingest MODEL --queue` queues some")
    write(listing.jobs(store, found), form, output)


@group.command()
def show(
    context: typer.Context,
    job: JobArgument,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """All that is known of a job: what it is at, why it failed, and what happened to it in order.

    Example: heads jobs show 12
    """
    write(listing.facts(_store(context, db), job), form, output)


@group.command()
def cancel(context: typer.Context, jobs: JobArguments, db: Db = None) -> None:
    """Cancel jobs: at once while they wait, else as soon as their workers hear of it.

    Example: heads jobs cancel 12 13
    """
    store = _store(context, db)
    for job in map(store.cancel, jobs):
        messages.print(
            f"job {job.id} is stopping: {job.worker} was told"
            if listing.is_stopping(job)
            else f"job {job.id} is {job.state}"
        )


@group.command()
def retry(context: typer.Context, jobs: JobArguments, db: Db = None) -> None:
    """Queue failed or cancelled jobs again.

    Example: heads jobs retry 12
    """
    database = open_catalog(context, db).database
    store = open_store(database)
    for job in map(store.retry, jobs):
        messages.print(f"job {job.id} is queued again")
        nudge(database, store, job)


@group.command()
def watch(
    context: typer.Context,
    jobs: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID...]", help="By default all that are not over yet."),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    db: Db = None,
) -> None:
    """Show jobs as they go on, until all are over; exit code 1 if one did not succeed.

    Example: heads jobs watch

    Example: heads jobs watch 12 13
    """
    store = _store(context, db)
    ids = jobs or [job.id for job in reversed(store.list(states=[State.QUEUED, State.RUNNING]))]
    if not ids:
        messages.print("no job is queued or running")
        return
    with Live(console=messages, auto_refresh=False) as live:
        while True:
            found = [store.get(job_id) for job_id in ids]
            live.update(_drawn(store, found), refresh=True)
            if all(job.is_over for job in found):
                break
            time.sleep(every)
    if any(job.state != State.SUCCEEDED for job in found):
        raise typer.Exit(1)


@group.command()
def workers(
    context: typer.Context, form: FormatOption = None, output: OutputOption = None, db: Db = None
) -> None:
    """List the workers, with the job that each has and when each was last heard of.

    Example: heads jobs workers
    """
    store = _store(context, db)
    found = listing.workers(store)
    if not len(found):
        messages.print("no worker was heard of; start one with `heads worker`")
    write(found, form, output)


@group.command()
def prune(
    context: typer.Context,
    older_than: Annotated[
        str, typer.Option(metavar="SPAN", help="For how long they have been over, such as 12w.")
    ] = "90d",
    yes: Annotated[
        bool, typer.Option("--yes", help="Forget them; without it, count them.")
    ] = False,
    db: Db = None,
) -> None:
    """Forget jobs that have long been over, and all that happened to them; scores and runs stay.

    Example: heads jobs prune --older-than 30d

    Example: heads jobs prune --older-than 30d --yes
    """
    past, span = Past(_store(context, db)), listing.span(older_than, "--older-than")
    if yes:
        messages.print(f"{past.prune(span)} jobs are forgotten")
        return
    found = past.old(span)
    messages.print(
        f"{found} jobs have been over for {older_than}" + "; --yes forgets them" * bool(found)
    )


def _store(context: typer.Context, db: str | None) -> JobStore:
    return open_store(open_catalog(context, db).database)


def _drawn(store: JobStore, found: Sequence[Job]) -> Table:
    table = Table(*_SHOWN, box=None, pad_edge=False, header_style="bold")
    for row in listing.jobs(store, found):
        end = row["expected_end"]
        shown = row | {"expected_end": end and end.astimezone().strftime("%H:%M:%S")}
        table.add_row(*("" if shown[name] is None else str(shown[name]) for name in _SHOWN))
    return table


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="jobs")
