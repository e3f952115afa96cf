"""Serving the page: Streamlit in a process of its own, with defaults fit for a shared machine."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from catalog.database import Database
from catalog.errors import MissingExtraError
from catalog.settings import load_settings
from ui import access

_SERVER = Path(__file__).with_name("server.py")
_PATIENCE = 10.0
# Tables and figures rather than air; and a colour of choices that is not the one of errors.
_THEME = {
    "theme.paddingTop": "1.5rem",
    "theme.paddingBottom": "3rem",
    "theme.headingFontSizes": "2rem,1.5rem,1.25rem",
    "theme.light.primaryColor": "#2166ac",
    "theme.dark.primaryColor": "#3a7cbf",
}


def command(*, port: int, address: str) -> list[str]:
    """The command that serves the page.

    Args:
        port: To listen on.
        address: Interface to listen on; under one of this machine alone, requests that were
            meant for another host name than that or `HEADS_PAGE_URL`'s are refused (DNS rebinding).

    Raises:
        UsageError: If something that signing in needs is missing or cannot be meant.
        MissingExtraError: If a package that signing in needs is not installed.
    """
    settings = load_settings()
    # Looked at here already, where the reason is seen; Streamlit's process reads it itself.
    access.secrets(settings, port=port, address=address)
    public = access.host(settings)
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": "true",
        "server.enableAgentApi": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        # It would show the docstrings of pages' constants as text.
        "runner.magicEnabled": "false",
    }
    flags = [f"--{name}={value}" for name, value in (options | _THEME).items()]
    if address in access.LOOPBACK or public:
        names = dict.fromkeys((*access.LOOPBACK, *filter(None, [public])))
        flags += [f"--server.allowedHosts={name}" for name in names]
    return [sys.executable, "-m", "streamlit", "run", str(_SERVER), *flags]


def environment(database: Database) -> dict[str, str]:
    """This process's environment, with the catalog that the page reads.

    A variable rather than an argument: other users of a machine see arguments, and the URL may
    hold a password.
    """
    url = database.url
    if database.path:
        url = url.set(database=str(database.path.resolve()))
    return os.environ | {"HEADS_DATABASE_URL": url.render_as_string(hide_password=False)}


def serve(database: Database, *, port: int, address: str) -> int:
    """Serve the page until Ctrl-C.

    Args:
        database: The catalog that the page reads.
        port: To listen on.
        address: Interface to listen on; others than 127.0.0.1 show the catalog to others.

    Returns:
        The exit code: 0 after Ctrl-C, Streamlit's own where it ended by itself.

    Raises:
        UsageError: If something that signing in needs is missing or cannot be meant.
        MissingExtraError: If Streamlit is not installed, or what signing in needs.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise MissingExtraError(
            "the page needs the package streamlit; install it with `pip install 'head-catalog[ui]'`"
        )
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
        command(port=port, address=address), env=environment(database)
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # In a terminal Ctrl-C reaches Streamlit as well, and this only waits for it.
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    process.kill()
    process.wait()
