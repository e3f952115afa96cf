"""Everything on one machine: a worker, the scheduler and the page, started and ended together."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence

from catalog.database import Database
from ui import launch

_LOOK = 0.2
_STARTS_WITHIN = 60.0
_KILLED_AFTER = 20.0
"""Seconds beyond the worker's grace."""
_PR_SET_PDEATHSIG = 1


def run(
    database: Database,
    *,
    port: int,
    grace: float,
    worker: Sequence[str],
    tell: Callable[[str], None],
) -> int:
    """Run all three until Ctrl-C, or until one of them ends.

    Args:
        database: The catalog.
        port: Of the page, on this machine alone.
        grace: Seconds for the worker's job to end.
        worker: Further arguments of `heads worker`.
        tell: Told the page's address, and what has ended.

    Returns:
        The exit code: 0 where it was told to end.
    """
    heads = [sys.executable, "-m", "ui.cli"]
    environment = launch.environment(database)
    commands = {
        "worker": [*heads, "worker", f"--stop-grace={grace:g}", *worker],
        "scheduler": [*heads, "scheduler"],
        "page": launch.command(port=port, address="127.0.0.1"),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            processes[name] = _start(command, environment)
        _wait_for_page(port, processes)
        tell(f"the page is at http://127.0.0.1:{port}; Ctrl-C ends everything")
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    tell(f"the {name} has ended ({_how(process.returncode)}), so all is stopped")
                    return 1
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        return 0
    finally:
        # Once begun, ending is gone through with.
        for told in (signal.SIGINT, signal.SIGTERM):
            signal.signal(told, signal.SIG_IGN)
        tell("stopping")
        _end(list(processes.values()), grace + _KILLED_AFTER)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches us, and we end the others in order.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and modules
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has no threads
    )


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, of whatever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_page(port: int, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes.values()):
            return
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
        except (urllib.error.URLError, OSError):
            time.sleep(_LOOK)
        else:
            return


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _end(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Its children end with it.
            process.kill()
            process.wait()
