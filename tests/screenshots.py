"""Pictures of every page over a measured catalog; run by `make screenshots`."""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import install_browser
from browsing import FLAGS, serving
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import catalog
from catalog import Catalog, patterns
from ui import launch

PATIENCE = 120.0
COLORS = 256
WIDTH, TABLET, HEIGHT, TALLEST = 1280, 820, 800, 2400
LIGHT, DARK = "light", "dark"
"""Values of the media feature prefers-color-scheme."""


@dataclass(frozen=True)
class View:
    """A page in a state worth seeing, and in what it is seen."""

    name: str
    path: str
    asked: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    is_main: bool = False
    """Whether it is also taken dark, and on a tablet."""

    end: int | None = None
    """Pixels from the top, where what follows is of no interest or names files of this machine."""

    @property
    def address(self) -> str:
        return f"{self.path}?{urlencode(self.asked, doseq=True)}"


def views(heads: Catalog) -> Iterator[View]:
    """The pages, each about the models and heads that have most to show."""
    models = [row["model"] for row in heads.sql("SELECT model FROM models ORDER BY added_at")]
    first = models[0]
    induction = {"metric": "induction", "probe": "random_repeat"}
    [top] = heads.sql(
        "SELECT h.name FROM scores s JOIN heads h USING (model, layer, head) WHERE s.model = :m "
        "AND s.metric = 'induction' AND s.probe = 'random_repeat' ORDER BY s.value DESC LIMIT 1",
        m=first,
    ).rows()
    yield View("overview", "", is_main=True)
    yield View(
        "heads",
        "heads",
        {
            "show": ["induction on random_repeat", "previous_token on random_repeat"],
            "order": "induction on random_repeat",
            "direction": "largest first",
        },
        is_main=True,
        end=1130,
    )
    yield View("category_map", "category_map", {"model": models}, is_main=True)
    yield View("layer_bins", "layer_bins", {"model": models, "taxonomy": "role"}, is_main=True)
    stored = patterns.stored(heads).rows()
    if stored:
        longest = max(stored, key=lambda row: row["n_tokens"])["prompt"]
        named = list(dict.fromkeys(row["model"] for row in stored if row["prompt"] == longest))
        yield View(
            "patterns", "patterns", {"model": named, "prompt": longest}, is_main=True, end=860
        )
    yield View("token_classes", "token_classes", {"model": models}, is_main=True)
    shown = {"model": models, **induction}
    yield View("metrics_map", "metrics", shown, is_main=True)
    yield View("metrics_diverging", "metrics", {"model": first, "metric": "ov_copying"})
    yield View("metrics_distribution", "metrics", shown | {"view": "distribution"})
    against = {"view": "against another", "against metric": "previous_token"}
    yield View("metrics_scatter", "metrics", shown | against, is_main=True)
    yield View("metrics_depth", "metrics", shown | {"view": "by depth"})
    yield View("metrics_ranking", "metrics", shown | {"view": "ranking"})
    if len(models) > 1:
        two = {"first": first, "second": models[1]}
        yield View("compare", "compare", two | induction, is_main=True)
    yield View("head", "head", {"model": first, "head": top["name"]}, is_main=True, end=1200)
    yield View("jobs", "jobs")
    query = (
        "SELECT layer, head, value AS induction\nFROM scores\n"
        "WHERE metric = 'induction' AND probe = 'random_repeat'\n"
        f"  AND model = '{first}'\nORDER BY value DESC"
    )
    drawn = {"chart": "heat map", "x": "layer", "y": "head", "colour": "induction"}
    yield View("sql", "sql", {"query": query} | drawn, is_main=True)


def settle(page: Page) -> None:
    """Wait until the page has run to its end, and every chart is drawn."""
    page.wait_for_selector("[data-test-script-state=notRunning] h1")
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
    page.wait_for_function(
        """() => [...document.querySelectorAll("[data-testid=stVegaLiteChart]")]
            .every(chart => chart.querySelector("svg.marks, canvas.marks"))"""
    )
    page.wait_for_function("() => document.fonts.status === 'loaded'")


def take(browser: Browser, site: str, view: View, to: Path, *, scheme: str, width: int) -> None:
    """A picture of the whole page, from its top to its end."""
    tab = browser.new_page(
        viewport={"width": width, "height": HEIGHT},
        color_scheme="dark" if scheme == DARK else "light",
    )
    tab.set_default_timeout(1000 * PATIENCE)
    tab.goto(f"{site}/{view.address}")
    settle(tab)
    # What scrolls is a box within the page.
    tall = tab.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
    tab.set_viewport_size({"width": width, "height": min(max(int(tall), HEIGHT), TALLEST)})
    settle(tab)
    with Image.open(io.BytesIO(tab.screenshot())) as picture:
        cut = picture.crop((0, 0, width, min(picture.height, view.end or picture.height)))
        # A page has few colours: a palette of them takes a third of the bytes.
        cut.quantize(COLORS).save(to, optimize=True)
    tab.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default=os.environ.get("HEADS_DATABASE_URL"), help="URL")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--only", help="the view of this name")
    asked = parser.parse_args()
    expect.set_options(timeout=1000 * PATIENCE)
    heads = catalog.connect(asked.db)
    asked.to.mkdir(parents=True, exist_ok=True)
    # Whole, since the page's own folder is another.
    url = launch.environment(heads.database)["HEADS_DATABASE_URL"]
    path = install_browser.find()
    with (
        tempfile.TemporaryDirectory() as room,
        serving(Path(room), HEADS_DATABASE_URL=url) as served,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for view in views(heads):
            if asked.only not in {None, view.name}:
                continue
            looks = [("", LIGHT, WIDTH)]
            if view.is_main:
                looks += [("_dark", DARK, WIDTH), ("_tablet", LIGHT, TABLET)]
            for suffix, scheme, width in looks:
                to = asked.to / f"{view.name}{suffix}.png"
                take(browser, served.address, view, to, scheme=scheme, width=width)
                sys.stdout.write(f"{to}\n")
        browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
