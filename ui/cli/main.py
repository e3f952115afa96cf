"""The command's entry: all commands, and errors as one sentence with a stable exit code."""

import os
import signal
import sys
import traceback
from importlib.metadata import version
from types import FrameType
from typing import Annotated

import typer

from catalog.errors import HeadsError
from ui.cli import (
    ask,
    bring,
    copying,
    database,
    doctor,
    draw,
    jobs,
    measure,
    patterns,
    schedule,
    serve,
)
from ui.cli.common import State

INTERNAL_ERROR = 70
INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="heads",
    help="A catalog of attention heads across language models: which heads, in which models, "
    "do what?",
    epilog="Exit codes: 0 done; 1 other errors; 2 usage; 3 model; 4 probe, relations or labels; "
    "5 schema; 6 locked; 7 query; 8 missing extra; 9 storage; 70 a bug.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in examples are the metrics' parameters
    add_completion=False,
)


def _show_version(is_asked: bool) -> None:  # noqa: FBT001 - Typer's
    if is_asked:
        print(version("head-catalog"))  # noqa: T201 - the command's own output
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    db: str | None = typer.Option(
        None, "--db", metavar="URL", help="The catalog; or set HEADS_DATABASE_URL."
    ),
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the release, and end."
        ),
    ] = False,
) -> None:
    context.obj = State(db=db)


for module in (
    measure,
    jobs,
    schedule,
    patterns,
    bring,
    ask,
    draw,
    database,
    serve,
    copying,
    doctor,
):
    module.add_to(app)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except HeadsError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - users get a sentence, developers the whole story
        if os.environ.get("HEADS_DEBUG"):
            traceback.print_exc()
        reason = str(error).strip().split("\n")[0]
        _say(f"this is a bug: {type(error).__name__}: {reason} (HEADS_DEBUG=1 shows where)")
        sys.exit(INTERNAL_ERROR)


class Terminated(SystemExit):
    """SIGTERM as an exception, so that a run under way is closed with its reason."""

    def __init__(self) -> None:
        """Exit as a shell says that a process was terminated."""
        super().__init__(TERMINATED)

    def __str__(self) -> str:
        return "by SIGTERM"


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)  # noqa: T201 - the command's own output
