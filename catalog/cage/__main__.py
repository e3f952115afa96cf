"""Read one request, answer it on standard output, and end."""

import json
import os
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from catalog.cage.limits import (
    BeyondLimitError,
    Failure,
    Limits,
    RefusedError,
    Request,
    UnreachableError,
)

_STATM = Path("/proc/self/statm")
_ROOM = 256 * 2**20
"""Address space for what is no query's: the answer, the driver, its blocks."""


def main(kind: str) -> NoReturn:
    """Answer one request for the database of this kind, `duck` or `postgresql`."""
    # Loaded before anything is asked: the process waits with all that it will need.
    try:
        side = import_module(f"catalog.cage.{kind}")
    except ModuleNotFoundError as error:
        _say_ready()
        _fail("missing", str(error.name))
    _say_ready()
    raw = json.load(sys.stdin)
    request = Request(**raw | {"limits": Limits(**raw["limits"])})
    _confine(request.limits)
    try:
        table, cut = side.ask(request)
    except RefusedError as error:
        _fail("refused", str(error))
    except BeyondLimitError as error:
        _fail(error.which, "")
    except UnreachableError as error:
        _fail("unreachable", str(error))
    except MemoryError:
        _fail("memory", "")
    except Exception as error:  # noqa: BLE001 - drivers have many, and all go to whoever asked
        _fail("failed", str(error).strip())
    _reply({"cut": cut}, table)


def _say_ready() -> None:
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _confine(limits: Limits) -> None:
    if _STATM.exists():  # elsewhere than on Linux the system does not keep to such a limit
        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        space = used + limits.memory + 2 * limits.bytes + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    seconds = int(limits.seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for which in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(which, (0, 0))


def _fail(failure: Failure, message: str) -> NoReturn:
    _reply({"failure": failure, "message": message}, None)


def _reply(header: dict[str, Any], table: pa.Table | None) -> NoReturn:
    out = sys.stdout.buffer
    out.write(json.dumps(header).encode() + b"\n")
    if table is not None:
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    out.flush()
    # Threads of drivers may still be at work on what nobody waits for.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
