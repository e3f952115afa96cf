"""The page Patterns in a real browser, over models that ran, with a worker that runs one more."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import browsing
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import workers
from browsing import serving, shoot
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Page, expect
from test_capture import PROMPT, TOKENS, own

import catalog
from catalog import Catalog
from catalog.pattern_rows import MAX_ERROR
from ingest.capture import CaptureRequest, capture

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

browser, page = browsing.browser, browsing.page
HEADS = {"llama": ["L2H5", "L0H0", "L1H3"], "gpt2": ["L1H1"]}
OWN_PROMPT, OWN_TOKENS = "w9 w8 w9 w8", [9, 8, 9, 8]
SHOWN = 0.00005
"""Half a unit of the last place of what is shown."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save(folder / name, name) for name in HEADS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Catalog:
    folder = tmp_path_factory.mktemp("site")
    one = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    for name, path in models.items():
        request = CaptureRequest(model=str(path), heads=",".join(HEADS[name]), prompts=(PROMPT,))
        capture(one, request)
    return one


@pytest.fixture(scope="module")
def site(made: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page that may submit jobs, with a worker beside it."""
    assert made.database.path is not None
    url = made.database.url.render_as_string(hide_password=False)
    with (
        workers.service(
            made, tmp_path_factory.mktemp("logs"), {"HEADS_DATABASE_URL": url}
        ) as service,
    ):
        service.worker()
        with serving(made.database.path.parent, HEADS_PAGE_MAY_SUBMIT="true") as served:
            yield served.address


def address(site: str, **asked: str | Sequence[str]) -> str:
    return f"{site}/patterns?{urlencode(asked, doseq=True)}"


def panel(page: Page, model: str, name: str) -> Locator:
    return page.locator(f'canvas[aria-label^="{name} of {model}:"]')


def told(page: Page, canvas: Locator, count: int, query: int, key: int) -> list[str]:
    """What the page tells of a cell that the pointer is over."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    side = (box["width"] - 2) / count
    page.mouse.move(box["x"] + 1 + (key + 0.5) * side, box["y"] + 1 + (query + 0.5) * side)
    tip = page.get_by_role("tooltip")
    expect(tip).to_be_visible()
    return tip.locator("div").all_inner_texts()


def expect_cells(
    page: Page, model: str, name: str, tokens: list[str], attention: NDArray[Any]
) -> None:
    """Every third cell that a query may attend to is told as the model itself has it."""
    canvas = panel(page, model, name)
    layer, head = map(int, re.findall(r"\d+", name))
    for query in range(0, len(tokens), 3):
        for key in range(0, query + 1, 2):
            lines = told(page, canvas, len(tokens), query, key)
            assert lines[:3] == [
                f"{name} of {model}",
                f"Query {query}: {tokens[query]!r}",
                f"Key {key}: {tokens[key]!r}",
            ]
            value = float(lines[3].removeprefix("Attention "))
            assert abs(value - attention[layer, head, query, key]) <= MAX_ERROR + SHOWN


def test_a_grid_from_the_link_to_the_head(
    page: Page, browser: Browser, site: str, models: dict[str, Path]
) -> None:
    asked = {f"heads of {name}": " ".join(heads) for name, heads in HEADS.items()}
    page.goto(address(site, model=list(HEADS), prompt=PROMPT, **asked))
    expect(page.locator("canvas[aria-label]")).to_have_count(4)
    assert page.locator(".panel a").all_inner_texts() == [*HEADS["llama"], *HEADS["gpt2"]]
    for name, path in models.items():
        expect_cells(page, name, HEADS[name][0], PROMPT.split(), own(path, TOKENS))
    lines = told(page, panel(page, "llama", "L0H0"), len(TOKENS), 2, 7)
    assert lines[3] == "No query attends to later keys"
    shoot(page, "patterns")

    # Without a mouse.
    canvas = panel(page, "llama", "L1H3")
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("[aria-live=polite]").last).to_contain_text("Query 2: 'w5', Key 1: 'w4'")

    page.get_by_role("button", name="Download").click()
    with page.expect_download() as loading:
        page.get_by_role("button", name="PNG").click()
    assert loading.value.path().read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as loading:
        page.get_by_role("button", name="Parquet").click()
    cells = pq.read_table(io.BytesIO(loading.value.path().read_bytes())).to_pylist()
    assert len(cells) == 4 * 55
    attention = own(models["gpt2"], TOKENS)
    [cell] = [one for one in cells if (one["model"], one["query"], one["key"]) == ("gpt2", 7, 2)]
    np.testing.assert_allclose(cell["value"], attention[1, 1, 7, 2], rtol=0, atol=MAX_ERROR + 1e-6)
    page.keyboard.press("Escape")

    fresh = browser.new_page(viewport={"width": 1280, "height": 1100})
    fresh.goto(page.url)
    expect(fresh.locator("canvas[aria-label]")).to_have_count(4)
    assert fresh.locator(".panel a").all_inner_texts() == [*HEADS["llama"], *HEADS["gpt2"]]
    fresh.close()

    panel(page, "gpt2", "L1H1").click()
    expect(page.get_by_role("heading", name="Head", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile(r"/head\?model=gpt2&head=L1H1$"))
    page.go_back()
    expect(page.get_by_role("heading", name="Patterns", exact=True)).to_be_visible()
    expect(page.locator("canvas[aria-label]")).to_have_count(4)


def test_the_readers_own_prompt_is_run_by_a_worker(
    page: Page, site: str, made: Catalog, models: dict[str, Path]
) -> None:
    page.goto(address(site, model="llama", prompt=PROMPT, **{"heads of llama": "L1H3 L2H5"}))
    expect(page.locator("canvas[aria-label]")).to_have_count(2)
    page.get_by_role("textbox", name="My prompt").fill(OWN_PROMPT)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page).to_have_url(re.compile(r"job=\d"))
    expect(page).to_have_url(re.compile(r"prompt=w9\+w8\+w9\+w8"))
    expect(page).not_to_have_url(re.compile("job="))
    expect(page.get_by_text("Job 1")).to_have_count(0)
    expect(panel(page, "llama", "L1H3")).to_have_attribute("width", "4")
    expect_cells(page, "llama", "L2H5", OWN_PROMPT.split(), own(models["llama"], OWN_TOKENS))
    stored = made.sql("SELECT layer, head FROM stored_patterns WHERE prompt = :p", p=OWN_PROMPT)
    assert sorted(tuple(row.values()) for row in stored) == [(1, 3), (2, 5)]
    shoot(page, "patterns_own_prompt")
