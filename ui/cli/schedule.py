"""Models that ingest themselves: `schedule add`, `list`, `show`, `pause`, `resume`, `run` ..."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from catalog.errors import HeadsError, UsageError
from catalog.jobs import JobStore, Schedules, open_store, schedules
from catalog.jobs.schedules import Kind, ScheduleSpec
from ui import queueing
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

group = typer.Typer(help="What is ingested by itself, and when.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of `heads schedule list`.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be ingested and what not; do nothing.")
]


@group.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the schedule shall be called.")],
    model: Annotated[
        str | None,
        typer.Option(help="Watch a model (Hub id, folder or .gguf file) for new revisions."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of --model: another branch.")] = None,
    hub_author: Annotated[
        str | None, typer.Option(help="Watch an organisation or user of the Hub.")
    ] = None,
    hub_search: Annotated[
        str | None, typer.Option(help="Watch models with this in their id; or of --hub-author.")
    ] = None,
    hub_collection: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Watch a collection of the Hub.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Watch a folder of folders and .gguf files.")
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Measure again what newer metrics would change.")
    ] = False,
    every: Annotated[
        str | None, typer.Option(metavar="INTERVAL", help="Such as 30m, 6h, 1d or 2w.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="Minute, hour, day, month and weekday, as in crontab.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of --cron, such as Europe/Berlin.")] = "UTC",
    min_params: Annotated[
        str | None, typer.Option(metavar="N", help="Parameters, such as 70M.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(metavar="N", help="Such as 8B.")] = None,
    min_downloads: Annotated[int | None, typer.Option(min=0, help="In the last 30 days.")] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="Such as apache-2.0; may be repeated.")
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(help="Such as llama; may be repeated.")
    ] = None,
    at_most: Annotated[int, typer.Option(min=1, help="Models that one run submits.")] = 10,
    suite: Annotated[
        list[str] | None, typer.Option(help="By default all; may be repeated.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    relations: options.Relations = None,
    probe: options.Probe = None,
    only: options.Only = False,
    token_class: options.TokenClasses = None,
    allow_pickle: options.AllowPickle = False,
    dry_run: DryRun = False,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Ingest what is new, again and again; a scheduler has to run (`heads up`, `heads scheduler`).

    Only supported architectures are taken from the Hub, and what is gated only with HF_TOKEN. A
    folder's models are taken once nothing of them has changed for a minute.

    Example: heads schedule add smol --model HuggingFaceTB/SmolLM2-135M --every 6h

    Example: heads schedule add eleuther --hub-author EleutherAI --max-params 3B --cron "0 3 * * *"

    Example: heads schedule add small --hub-search tiny --licence mit --every 1d --dry-run

    Example: heads schedule add inbox --folder ./models --every 10m --suite weights

    Example: heads schedule add renewed --stale --every 1d
    """
    doing = _doing()
    kind, target = _target(
        model, revision, hub_author, hub_search, hub_collection, folder, stale=stale
    )
    bounds = {
        "min_params": None if min_params is None else _count(min_params),
        "max_params": None if max_params is None else _count(max_params),
        "min_downloads": min_downloads,
        "licences": list(licence or ()),
        "architectures": list(architecture or ()),
    }
    if any(value not in (None, []) for value in bounds.values()) and kind not in _LIMITED:
        raise UsageError("limits are for --hub-author, --hub-search and --hub-collection")
    asked = {
        "suites": list(suite or ()),
        "device": device,
        "dtype": dtype,
        "relations": str(relations.expanduser().resolve()) if relations else None,
        "probe": str(probe.expanduser().resolve()) if probe else None,
        "only": only,
        "token_classes": list(token_class or ()),
        "allow_pickle": allow_pickle,
    }
    spec = ScheduleSpec(
        name=name,
        kind=kind,
        target=target,
        cron=cron,
        timezone=timezone,
        every=None if every is None else doing.interval(every),
        request=asked,
        limits=bounds | {"at_most": at_most},
    )
    catalog = open_catalog(context, db, create=True)
    store = open_store(catalog.database)
    if dry_run:
        _show(doing.preview(catalog, spec, store.now(), store), form, output, is_done=False)
        return
    schedule = doing.add(store, spec)
    messages.print(f"{name}: {schedule.when}, first at {schedule.next_run_at:%Y-%m-%d %H:%M} UTC")


@group.command("list")
def list_(
    context: typer.Context, form: FormatOption = None, output: OutputOption = None, db: Db = None
) -> None:
    """List the schedules, with when each ran last, what came of it, and when it runs next.

    Example: heads schedule list
    """
    found = schedules.listing(Schedules(_store(context, db)))
    if not len(found):
        messages.print("there is no schedule; make one with `heads schedule add`")
    write(found, form, output)


@group.command()
def show(
    context: typer.Context,
    name: NameArgument,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """List what a schedule has found: what it submitted and refused, and why, the latest first.

    Example: heads schedule show eleuther --format csv -o eleuther.csv
    """
    kept = Schedules(_store(context, db))
    schedule = kept.get(name)
    state = "paused" if schedule.is_paused else f"next at {schedule.next_run_at:%Y-%m-%d %H:%M} UTC"
    messages.print(f"{name}: {schedule.kind} {schedule.watches}, {schedule.when}, {state}")
    if schedule.added_by is not None:
        messages.print(f"added by {schedule.added_by} at {schedule.created_at:%Y-%m-%d %H:%M} UTC")
    if schedule.last_run_at is not None:
        messages.print(f"last at {schedule.last_run_at:%Y-%m-%d %H:%M} UTC: {schedule.last_result}")
    write(schedules.found(kept, name), form, output)


@group.command()
def remove(context: typer.Context, name: NameArgument, db: Db = None) -> None:
    """Forget a schedule; jobs that it has submitted go on.

    Example: heads schedule remove eleuther
    """
    Schedules(_store(context, db)).remove(name)
    messages.print(f"{name} is removed")


@group.command()
def pause(context: typer.Context, name: NameArgument, db: Db = None) -> None:
    """Let a schedule rest.

    Example: heads schedule pause eleuther
    """
    Schedules(_store(context, db)).pause(name)
    messages.print(f"{name} is paused")


@group.command()
def resume(context: typer.Context, name: NameArgument, db: Db = None) -> None:
    """Let a schedule go on; if its time has passed meanwhile, it runs once.

    Example: heads schedule resume eleuther
    """
    schedule = Schedules(_store(context, db)).pause(name, is_paused=False)
    messages.print(f"{name} goes on, next at {schedule.next_run_at:%Y-%m-%d %H:%M} UTC")


@group.command()
def run(
    context: typer.Context,
    name: NameArgument,
    dry_run: DryRun = False,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Look now, and submit what is new; when the schedule is due otherwise stays as it is.

    Example: heads schedule run eleuther --dry-run
    """
    doing = _doing()
    catalog = open_catalog(context, db)
    store = open_store(catalog.database)
    if dry_run:
        found = doing.preview(catalog, Schedules(store).get(name), store.now(), store)
        _show(found, form, output, is_done=False)
        return
    ran = doing.run_now(store, catalog, name)
    if isinstance(ran.error, HeadsError):
        raise ran.error
    if ran.error is not None:
        raise HeadsError(ran.result)
    messages.print(f"{name}: {ran.result}")
    _show(ran.decided, form, output, is_done=True)


_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMBT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LIMITED = (Kind.HUB, Kind.COLLECTION)


def _doing() -> ModuleType:
    return require("ingest.schedules", "service")


def _store(context: typer.Context, db: str | None) -> JobStore:
    return open_store(open_catalog(context, db).database)


def _count(text: str) -> int:
    """A number of parameters: `135M`, `7B`, `1.5b`, `40000`."""
    matched = _COUNT.fullmatch(text.strip())
    if matched is None:
        raise UsageError(f"{text!r} is no number of parameters; expected such as 135M or 7B")
    return round(float(matched[1]) * _FACTORS[matched[2].upper()])


def _target(
    model: str | None,
    revision: str | None,
    hub_author: str | None,
    hub_search: str | None,
    hub_collection: str | None,
    folder: Path | None,
    *,
    stale: bool,
) -> tuple[Kind, dict[str, Any]]:
    """What is watched, of which there must be one.

    Raises:
        UsageError: If there is none or several, or a folder is not there.
    """
    given: dict[Kind, dict[str, Any]] = {}
    if model:
        path = Path(model).expanduser()
        if revision and path.exists():
            raise UsageError("--revision is for models on the Hub")
        given[Kind.MODEL] = {
            "model": str(path.resolve()) if path.exists() else model,
            "revision": revision,
        }
    if hub_author or hub_search:
        given[Kind.HUB] = {"author": hub_author, "search": hub_search}
    if hub_collection:
        given[Kind.COLLECTION] = {"collection": hub_collection}
    if folder:
        if not folder.expanduser().is_dir():
            raise UsageError(f"--folder {folder} is no folder")
        given[Kind.FOLDER] = {"folder": str(folder.expanduser().resolve())}
    if stale:
        given[Kind.STALE] = {}
    if len(given) != 1 or (revision and not model):
        raise UsageError(
            "a schedule watches one thing: --model M (and its --revision), --hub-author and "
            "--hub-search, --hub-collection, --folder or --stale"
        )
    return next(iter(given.items()))


def _show(
    decided: Iterable[Any], form: FormatOption, output: OutputOption, *, is_done: bool
) -> None:
    write(queueing.decisions(decided, is_done=is_done), form, output)


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="schedule")
