"""How long a reader waits for the page: `python -m benchmarks.pages`.

A headless Chromium on the served page, over a large catalog drawn from a seed (`benchmarks.large`)
and, for comparison in the same run, over one of two models. Two numbers of each page:

- first paint: from the navigation until the page's main content is drawn, on a server that has
  been used before, in a browser that has not (nothing in its cache);
- rerun: from the reader's last key or click until the page has taken on its new content.

Each rerun asks for something that nobody asked for before, so that the catalog has to answer it.
`after a write` are reruns of which each follows a write into the catalog, so that nothing that the
server has kept is of use.
"""

import argparse
import ast
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

import catalog
from benchmarks import large
from benchmarks.large import Size
from catalog.database import Database
from ui import launch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import install_browser

PAINT_TARGET, RERUN_TARGET = 2.0, 1.0
"""Seconds, of 95 %."""
PATIENCE = 120.0
QUIET = 0.4
"""Seconds without a change after which a page has settled; they are not counted."""
WINDOW = ViewportSize(width=1280, height=1100)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

_IS_DRAWN = """selectors => {
    const inside = root => [...root.querySelectorAll("*")].filter(one => one.shadowRoot);
    const find = (root, selector) => root.querySelector(selector) ??
        inside(root).map(one => find(one.shadowRoot, selector)).find(Boolean);
    return selectors.every(one => find(document, one)?.getBoundingClientRect().height > 0) &&
        performance.now();
}"""
_WATCH = """() => {
    if (window.seen) return;
    window.seen = {asked: 0, changed: 0, ran: false};
    for (const kind of ["keydown", "pointerdown", "pointerup"])
        window.addEventListener(kind, () => {
            Object.assign(seen, {asked: performance.now(), changed: 0, ran: false});
        }, {capture: true});
    new MutationObserver(() => { seen.changed = performance.now(); }).observe(
        document.querySelector("[data-testid=stMain]"),
        {subtree: true, childList: true, characterData: true, attributes: true});
    new MutationObserver(() => { seen.ran = true; }).observe(
        document.querySelector("[data-testid=stApp]"),
        {attributeFilter: ["data-test-script-state"]});
}"""
_RESTS = """() => document
    .querySelector("[data-testid=stApp]")
    .getAttribute("data-test-script-state") === "notRunning" """
_HAS_SETTLED = """quiet => {
    const app = document.querySelector("[data-testid=stApp]");
    const rests = app.getAttribute("data-test-script-state") === "notRunning";
    const stale = document.querySelector("[data-testid=stMain] [data-stale=true]");
    return seen.ran && rests && !stale && seen.changed > 0 &&
        performance.now() - seen.changed > quiet && seen.changed - seen.asked;
}"""

Action = Callable[[Page, int], None]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What is measured of one page."""

    query: Callable[[Sequence[str]], dict[str, object]] = lambda _: {}
    """The address's query on a catalog of these models, the largest first."""
    drawn: Sequence[str] = ("h1",)
    """CSS selectors of its main content."""
    what: str = ""
    """The typical choice that is changed, in words."""
    change: Action | None = None
    """Change it, for the n-th time."""


def _pick(label: str) -> Action:
    """Choose another option of a selectbox, by hand."""

    def change(page: Page, number: int) -> None:
        box = page.get_by_role("combobox", name=label, exact=True).first
        box.click()
        others = page.locator("[role=option]:not([aria-selected=true])")
        others.first.wait_for()
        name = others.nth(number % others.count()).inner_text()
        # In a list of one nothing scrolls, which would undo a click.
        box.fill(name)
        page.get_by_role("option", name=name, exact=True).click()

    return change


def _filter(label: str) -> Action:
    """Filter by one value, then by none, in turn."""

    def change(page: Page, number: int) -> None:
        box = page.get_by_role("combobox", name=label).first
        box.click()
        if number % 2:
            box.press("Backspace")
        else:
            options = page.get_by_role("option")
            options.first.wait_for()
            options.nth(number // 2 % options.count()).click()

    return change


def _turn_to_part(page: Page, number: int) -> None:
    """Show another of a page's parts."""
    page.get_by_role("radiogroup").locator("label").nth((number + 1) % 3).click()


def _press(name: str) -> Action:
    return lambda page, _: page.get_by_role("button", name=name).first.click()


def _slide(place: int = 0) -> Action:
    """Move a threshold one step."""

    def change(page: Page, _: int) -> None:
        page.get_by_role("slider").nth(place).press("ArrowRight")

    return change


def _write(label: str, text: Callable[[int], str]) -> Action:
    def change(page: Page, number: int) -> None:
        field = page.get_by_label(label, exact=True).first
        field.fill(text(number))
        field.press("Enter")

    return change


def _ask(page: Page, number: int) -> None:
    field = page.get_by_role("textbox").first
    field.fill(
        "SELECT model, avg(value) AS mean FROM scores WHERE metric = 'induction' "  # noqa: S608
        f"AND layer = {number % 6} GROUP BY 1 ORDER BY 2 DESC"
    )
    field.press("Control+Enter")


TABLE, CHART = "[data-testid=stDataFrame] canvas", "svg.marks, canvas.marks"
CELLS = "canvas[aria-label]"
HOME = "overview"
"""The page at the address itself."""
VISITS = {
    "overview": Visit(drawn=[TABLE], what="another size", change=_filter("Size")),
    "heads": Visit(
        drawn=[TABLE],
        what="tokens that contain other letters",
        change=_write("Salient token or output contains", lambda n: "aeiourstlnmpchdgbf"[n % 18]),
    ),
    "category_map": Visit(
        query=lambda models: {"model": models[:1]},
        drawn=[CHART],
        what="threshold, one step",
        change=_slide(),
    ),
    "layer_bins": Visit(
        query=lambda models: {"model": models[:4]},
        drawn=[CHART],
        what="one bin more or less",
        change=lambda page, number: page.get_by_test_id(
            f"stNumberInputStep{'Down' if number // 8 % 2 else 'Up'}"
        ).click(),
    ),
    "patterns": Visit(drawn=[CELLS], what="other columns", change=_pick("Columns")),
    "token_classes": Visit(
        query=lambda models: {"model": models[:2]},
        drawn=[CHART],
        what="another probe",
        change=_pick("Probe"),
    ),
    "metrics": Visit(
        query=lambda models: {"model": models[:1]},
        drawn=[CHART],
        what="another metric",
        change=_pick("Metric"),
    ),
    "compare": Visit(drawn=[CHART], what="another metric", change=_pick("Metric")),
    "head": Visit(
        query=lambda models: {"model": models[1], "head": "L3H0"},
        drawn=[TABLE],
        what="next head",
        change=_press("Next"),
    ),
    "jobs": Visit(what="another part", change=_turn_to_part),
    "sql": Visit(drawn=[TABLE], what="another query", change=_ask),
}


def pages() -> list[str]:
    """The pages of `ui/app.py`, by what their addresses call them."""
    tree = ast.parse(Path(launch.__file__).with_name("app.py").read_text(encoding="utf-8"))
    files = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [Path(one).stem for one in files if isinstance(one, str) and one.startswith("site/")]


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds, of one page on one catalog."""

    paint: list[float]
    rerun: list[float]
    after_write: list[float]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    usual = Size()
    arguments.add_argument("--models", type=int, default=usual.models)
    arguments.add_argument("--scores", type=int, default=usual.scores)
    arguments.add_argument("--seed", type=int, default=usual.seed)
    arguments.add_argument("--repeats", type=int, default=20, help="Of everything.")
    arguments.add_argument("--page", action="append", choices=pages(), help="Only this one.")
    arguments.add_argument("--quick", action="store_true", help="Small, to see that it works.")
    arguments.add_argument("--json", type=Path, help="All that was measured, into a file.")
    given = arguments.parse_args()
    size = Size(models=given.models, scores=given.scores, seed=given.seed)
    if given.quick:
        size, given.repeats = Size(models=10, scores=500_000, seed=given.seed), 3
    reference = Size(models=2, scores=10_000_000, seed=given.seed)
    chosen = given.page or pages()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=install_browser.find(), args=FLAGS)
        told = [_measure(browser, one, chosen, given.repeats) for one in (size, reference)]
        browser.close()
    _print(size, reference, *told)
    if given.json:
        given.json.write_text(json.dumps([{k: vars(v) for k, v in one.items()} for one in told]))


def _measure(browser: Browser, size: Size, chosen: Sequence[str], repeats: int) -> dict[str, Waits]:
    with tempfile.TemporaryDirectory() as folder:
        # A copy: reruns after a write need one.
        path = Path(shutil.copytree(large.kept(size).parent, Path(folder) / "catalog"))
        one = catalog.connect(f"duckdb:///{path / 'heads.duckdb'}")
        names = [row["model"] for row in one.sql("SELECT model FROM models ORDER BY model")]
        names.sort(key=lambda name: "70B" not in name)
        with _served(one.database) as (address, seconds):
            print(f"{size.models} models: a new server answers after {seconds:.1f} s", flush=True)
            found = {}
            for name in chosen:
                visit = VISITS.get(name, Visit())
                at = f"{address}/{'' if name == HOME else name}"
                query = urlencode(visit.query(names), doseq=True)
                begun = time.monotonic()
                waits = _of_page(browser, one.database, f"{at}?{query}", visit, repeats)
                told = {name: [round(one, 2) for one in all_] for name, all_ in vars(waits).items()}
                print(f"{name}: {time.monotonic() - begun:.0f} s, {told}", file=sys.stderr)
                found[name] = waits
            return found


def _of_page(
    browser: Browser,
    database: Database,
    address: str,
    visit: Visit,
    repeats: int,
) -> Waits:
    paints = [_paint(browser, address, visit) for _ in range(repeats + 1)]
    reruns: list[float] = []
    cold: list[float] = []
    if visit.change:
        with browser.new_context(viewport=WINDOW) as context:
            page = context.new_page()
            page.set_default_timeout(1_000 * PATIENCE)
            page.goto(address)
            page.wait_for_function(_IS_DRAWN, arg=list(visit.drawn))
            page.wait_for_function(_RESTS)
            page.evaluate(_WATCH)
            for number in range(2 * repeats):
                after_write = number >= repeats
                if after_write:
                    with database.transaction():
                        pass  # which is a change all the same
                visit.change(page, number)
                found = page.wait_for_function(_HAS_SETTLED, arg=1_000 * QUIET)
                (cold if after_write else reruns).append(found.json_value() / 1_000)
    # The first visit warms the server.
    return Waits(paint=paints[1:], rerun=reruns, after_write=cold)


def _paint(browser: Browser, address: str, visit: Visit) -> float:
    with browser.new_context(viewport=WINDOW) as context:
        page = context.new_page()
        page.set_default_timeout(1_000 * PATIENCE)
        page.goto(address, wait_until="commit")
        return float(page.wait_for_function(_IS_DRAWN, arg=list(visit.drawn)).json_value()) / 1_000


@contextmanager
def _served(database: Database) -> Iterator[tuple[str, float]]:
    """The page's address, and how long the server took to answer."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = int(chosen.getsockname()[1])
    begun = time.monotonic()
    process = subprocess.Popen(
        launch.command(port=port, address="127.0.0.1"), env=launch.environment(database)
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).close()  # noqa: S310 - http
                break
            except urllib.error.URLError:
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    raise
                time.sleep(0.05)
        yield address, time.monotonic() - begun
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _print(size: Size, reference: Size, told: dict[str, Waits], small: dict[str, Waits]) -> None:
    print(
        f"{size.models} models; seconds, p50 / p95; x: how many times the p50 of {reference.models}"
        f" models\n{'page':14} {'first paint':>13} {'x':>5} {'rerun':>14} {'x':>5} "
        f"{'after a write':>14}  rerun of"
    )
    for name, waits in told.items():
        cells = [
            _cell(waits.paint, small[name].paint, PAINT_TARGET),
            _cell(waits.rerun, small[name].rerun, RERUN_TARGET),
            _cell(waits.after_write, [], RERUN_TARGET),
        ]
        print(f"{name:14} {' '.join(cells)}  {VISITS.get(name, Visit()).what}")
    print(f"! over the target: {PAINT_TARGET:g} s for first paint, {RERUN_TARGET:g} s for reruns")


def _cell(seconds: Sequence[float], reference: Sequence[float], target: float) -> str:
    if not seconds:
        return f"{'':20}"
    p95 = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    times = f"{median(seconds) / median(reference):5.1f}" if reference else ""
    return f"{median(seconds):6.2f} / {p95:4.2f}{'!' if p95 > target else ' '} {times}"


if __name__ == "__main__":
    main()
