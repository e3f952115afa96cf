"""The served page, and a browser that reads it; pictures go to tests/output/."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import install_browser
import pytest
import servers
from playwright.sync_api import Browser, Dialog, Locator, Page, Request, expect, sync_playwright

OUTPUT = Path(__file__).parent / "output"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60.0
expect.set_options(timeout=1000 * PATIENCE)


@dataclass(frozen=True)
class Served:
    """A page that answers."""

    address: str
    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def serving(
    folder: Path, *command: str, port: int | None = None, **environment: str
) -> Iterator[Served]:
    """Serve the catalog of a folder as its operator does, and see that it ends well.

    Args:
        folder: Where the command runs, and leaves its log.
        command: What follows `heads`; `ui` where it is empty.
        port: Of the page; any that is free unless told.
        environment: More variables.
    """
    port = port or servers.free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui.cli", *(command or ["ui"]), "--port", str(port)],
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
    served = Served(f"http://127.0.0.1:{port}", process, folder)
    try:
        _wait_for(served)
        yield served
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, served.log
    finally:
        process.kill()


def _wait_for(served: Served) -> None:
    deadline = time.monotonic() + PATIENCE
    while served.process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own server
                f"{served.address}/_stcore/health", timeout=5
            ):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no page at {served.address}: {served.log}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = install_browser.find()
    if path is None:
        pytest.fail("no Chromium or Chrome on the PATH; `make browser` installs one")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab that fails the test on any error, dialog, or request to another machine."""
    tab = browser.new_page(viewport={"width": 1280, "height": 1100})
    tab.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(request: Request) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1[:/]|file:|data:|blob:", request.url):
            wrong.append(f"request: {request.url}")

    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on("dialog", dismiss)
    tab.on("request", check)
    yield tab
    tab.close()
    assert wrong == []


def visit(page: Page, site: str, path: str = "/category_map", **asked: str | list[str]) -> Locator:
    """Open a view and wait for its chart."""
    page.goto(f"{site}{path}?{urlencode(asked, doseq=True)}")
    return chart(page)


def chart(page: Page) -> Locator:
    found = page.locator(".vega-embed")
    expect(found.locator("svg.marks, canvas.marks")).to_be_visible()
    return found


def unfold(page: Page, title: str) -> None:
    """Open an expander to its full height: a list closes where the page scrolls under it."""
    page.get_by_text(title, exact=True).click()
    opened = page.locator("details[open]").filter(has_text=title).element_handle()
    page.wait_for_function("one => one.getAnimations({subtree: true}).length === 0", arg=opened)


def shoot(page: Page, name: str) -> None:
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)
