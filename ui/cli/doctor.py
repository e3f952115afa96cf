"""Looking at what the service stands on: `doctor`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import pyarrow as pa
import typer

from catalog import Result
from catalog.settings import SignIn
from ingest.service.doctor import Finding, Level, Patient, examine
from ui import access
from ui.cli.common import Db, FormatOption, OutputOption, database_of, write

_PORT = 8501
_COLUMNS = pa.schema([(name, pa.string()) for name in ("level", "check", "what", "remedy")])


def doctor(
    context: typer.Context,
    check: Annotated[
        list[str] | None,
        typer.Argument(
            help="packages, database, jobs, broker, workers, scheduler, disk, memory, gpu, hub or "
            "sign-in; "
            "by default all."
        ),
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Of the workers, only this machine's count.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 for warnings too.")] = False,
    form: FormatOption = None,
    output: OutputOption = None,
    db: Db = None,
) -> None:
    """Look at database, broker, workers, disk, GPU and the rest: each is well, or what to do.

    Ends with 1 where something has failed.

    Example: heads doctor

    Example: heads doctor workers --here --strict
    """
    patient = Patient(database_of(context, db), is_here=here)
    examined = examine(patient, check or (), {"sign-in": _sign_in})
    found = [{"check": name, **asdict(finding)} for name, finding in examined]
    write(Result(pa.Table.from_pylist(found, _COLUMNS)), form, output)
    bad = {Level.FAIL, Level.WARN} if strict else {Level.FAIL}
    if any(one["level"] in bad for one in found):
        raise typer.Exit(1)


def _sign_in(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    may = "change jobs and schedules" if settings.page_may_submit else "change nothing"
    if settings.page_sign_in is SignIn.NOBODY:
        yield Finding(Level.OK, f"nobody signs in; whoever sees the page may {may}")
        return
    # Where the page listens is not known here, and is said by HEADS_PAGE_URL in any case.
    access.secrets(settings, port=_PORT)
    problem = access.provider_trouble(str(settings.oidc_metadata_url))
    if problem:
        yield Finding(
            Level.FAIL, problem, "see to the provider, or correct HEADS_OIDC_METADATA_URL"
        )
        return
    who = ", ".join(settings.page_users)
    yield Finding(Level.OK, f"{settings.oidc_metadata_url} answers; signed in, {who} may {may}")


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)
