"""`heads` in processes forked from one that has imported all that a job needs.

A worker imports for two seconds, and the child that measures for five more: tests that begin dozens
of both would do little else. That a worker's own process stays free of torch, and all works from
the start of an interpreter on, is what `test_service` and `test_compose` see.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_MODULES = ("ingest.run", "ingest.capture", "ingest.service.worker", "ingest.service.scheduler")


def start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> psutil.Process:
    """Run `heads` in a process group of its own.

    Args:
        arguments: After `heads`.
        environment: All of it. What is read when Python or torch are imported comes too late.
        log: What it says goes to the end of this file, in whose folder it runs.
    """
    template = _template()
    assert template.stdin is not None
    assert template.stdout is not None
    template.stdin.write(json.dumps([list(arguments), dict(environment), str(log)]) + "\n")
    template.stdin.flush()
    return psutil.Process(int(template.stdout.readline()))


@functools.cache
def _template() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one, whose end closes its input."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _fork_on_request() -> None:
    for module in _MODULES:
        importlib.import_module(module)
    from ui.cli.main import main

    # Nobody here waits for those that end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become(*json.loads(line))
            main()
            return
        print(pid, flush=True)  # noqa: T201 - the answer


def _become(arguments: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, said = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream, file in ((0, nothing), (1, said), (2, said)):
        os.dup2(file, stream)
    os.chdir(Path(log).parent)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["heads", *arguments]


if __name__ == "__main__":
    _fork_on_request()
