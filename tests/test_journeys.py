"""What a researcher does on the page, in a real browser, over the catalog of a real model."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import browsing
import pandas as pd
import pytest
import torch
from browsing import chart, serving
from PIL import Image
from playwright.sync_api import Browser, Download, Locator, Page, expect

import catalog
from catalog import Catalog
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.request import IngestRequest
from ingest.run import ingest

pytestmark = [pytest.mark.model, pytest.mark.browser, pytest.mark.xdist_group("model")]

browser, page = browsing.browser, browsing.page

MODEL, LESIONED = "SmolLM2-135M-Instruct.Q4_1", "lesioned"
TOP = "L18H6"
INDUCTION = "induction on random_repeat"
_HEADER, _ROW = 35, 35
"""Pixels of a table's rows."""


@dataclass(frozen=True)
class Site:
    """A served catalog."""

    address: str
    heads: Catalog
    folder: Path


@pytest.fixture(scope="module")
def site(measured: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A copy of the real model's catalog, that others do not change."""
    folder = tmp_path_factory.mktemp("journeys")
    assert measured.database.path is not None
    shutil.copy(measured.database.path, folder / "heads.duckdb")
    heads = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}")
    with serving(folder) as served:
        yield Site(served.address, heads, folder)


def cells(page: Page, column: int, *, table: int = 0) -> Locator:
    """What a table shows in a column; the table itself is drawn on a canvas."""
    grid = page.get_by_test_id("stDataFrame").nth(table)
    return grid.locator(f"td[role=gridcell][aria-colindex='{column}']")


def follow_link(page: Page, *, row: int = 0) -> Page:
    """Click on the name of a head in a table; the tab that this opens."""
    grid = page.get_by_test_id("stDataFrame").first
    expect(cells(page, 1)).not_to_have_count(0)
    box = grid.bounding_box()
    assert box is not None
    tabs = len(page.context.pages)
    # Columns are as wide as what they hold: the link is somewhere to the right of the model.
    for right in range(200, 500, 20):
        page.mouse.click(box["x"] + right, box["y"] + _HEADER + (row + 0.5) * _ROW)
        page.wait_for_timeout(300)
        if len(page.context.pages) > tabs:
            return page.context.pages[-1]
    raise AssertionError("no click on the row opened a page")


def settle(page: Page) -> None:
    """Wait until the page has run to its end: what is touched before may be drawn anew."""
    page.wait_for_selector("[data-test-script-state=notRunning]")


def choose(page: Page, name: str, value: str) -> None:
    """Take one of what a box offers, and wait until the page has."""
    settle(page)
    box = page.get_by_role("combobox", name=name, exact=True)
    # A box offers nothing where one writes what it holds.
    if box.input_value() != value:
        box.fill(value)
        page.get_by_role("option", name=value, exact=True).click()
    expect(page).to_have_url(re.compile(re.escape(urlencode({name.lower(): value}))))


def download(page: Page, name: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name, exact=True).click()
    got: Download = waiting.value
    return Path(got.path()).read_bytes()


def count(heads: Catalog, query: str, **parameters: float) -> int:
    [row] = heads.sql(query, **parameters)
    return int(row["n"])


def top_heads(heads: Catalog, n: int) -> list[str]:
    found = heads.sql(
        "SELECT name FROM scores JOIN heads USING (model, layer, head) WHERE model = :m "
        "AND metric = 'induction' AND probe = 'random_repeat' ORDER BY value DESC LIMIT :n",
        m=MODEL,
        n=n,
    )
    return [row["name"] for row in found]


def test_from_a_ranking_to_the_top_induction_head_and_its_neighbours(
    page: Page, site: Site
) -> None:
    page.goto(f"{site.address}/metrics")
    choose(page, "Metric", "induction")
    choose(page, "Probe", "random_repeat")
    choose(page, "View", "ranking")
    best = top_heads(site.heads, 3)
    assert best[0] == TOP
    for place, name in enumerate(best):
        expect(cells(page, 2).nth(place)).to_have_text(re.compile(rf"head={name}$"))

    head = follow_link(page)
    box = head.get_by_role("textbox", name="Head")
    expect(box).to_have_value(TOP)
    expect(cells(head, 2)).to_have_text(["induction", "sink"])
    # The first of what it does among the heads of its model.
    expect(head.get_by_text("1 of 270").first).to_be_attached()
    head.get_by_role("button", name="Next L18H7").click()
    expect(box).to_have_value("L18H7")
    expect(head).to_have_url(re.compile(r"head=L18H7$"))
    head.get_by_role("button", name="Previous L18H6").click()
    expect(head).to_have_url(re.compile(rf"head={TOP}$"))
    head.go_back()
    expect(box).to_have_value("L18H7")
    head.close()


def test_filtered_heads_travel_as_a_link(page: Page, browser: Browser, site: Site) -> None:
    page.goto(f"{site.address}/heads")
    page.get_by_role("button", name=re.compile("^role: induction")).click()
    labelled = count(
        site.heads,
        "SELECT count(*) AS n FROM labels WHERE taxonomy = 'role' AND label = 'induction'",
    )
    # The address changes before the page has run.
    expect(page.get_by_text(f"of {labelled}, 100 on a page")).to_be_visible()
    settle(page)
    page.get_by_role("combobox", name="Scores within limits").fill(INDUCTION)
    page.get_by_role("option", name=INDUCTION, exact=True).click()
    # An open list hides the rest of the page from whoever goes by roles.
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(re.escape(urlencode({"range": INDUCTION}))))
    settle(page)
    least = page.get_by_role("spinbutton", name="from")
    least.fill("0.5")
    least.press("Enter")
    wanted = count(
        site.heads,
        "SELECT count(*) AS n FROM labels JOIN scores USING (model, layer, head) "
        "WHERE label = 'induction' AND metric = 'induction' AND probe = 'random_repeat' "
        "AND value >= 0.5",
    )
    assert 0 < wanted < 100
    counted = f"Heads 1 to {wanted} of {wanted},"
    expect(page.get_by_text(counted)).to_be_visible()
    settle(page)

    fresh = browser.new_page(viewport={"width": 1280, "height": 1100})
    fresh.goto(page.url)
    expect(fresh.get_by_text(counted)).to_be_visible()
    expect(cells(fresh, 2).first).to_have_text(cells(page, 2).first.text_content() or "")
    taken = pd.DataFrame(json.loads(download(fresh, "All as JSON")))
    assert len(taken) == wanted
    assert taken["score_induction_random_repeat"].min() >= 0.5
    fresh.close()
    page.go_back()
    expect(page.get_by_text(counted)).to_have_count(0)


def test_a_threshold_moves_labels_and_runs_no_model(page: Page, site: Site) -> None:
    def labelled(threshold: float) -> int:
        return count(
            site.heads,
            "SELECT count(DISTINCT (layer, head)) AS n FROM scores JOIN metrics USING (metric) "
            "WHERE family = 'relation_score' AND value >= :t",
            t=threshold,
        )

    def unclassified() -> Locator:
        return page.get_by_role("row", name="Unclassified").get_by_role("cell")

    runs = len(site.heads.sql("SELECT run_id FROM runs"))
    page.goto(f"{site.address}/category_map?model={MODEL}&taxonomy=function")
    chart(page)
    expect(unclassified()).to_have_text(re.compile(rf"^{270 - labelled(0.15)} "))
    slider = page.get_by_role("slider", name="relation_score from")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowLeft")
    expect(page).to_have_url(re.compile(r"relation_score\+from=0\.1(&|$)"))
    expect(unclassified()).to_have_text(re.compile(rf"^{270 - labelled(0.1)} "))
    assert labelled(0.1) > labelled(0.15)
    page.go_back()
    expect(unclassified()).to_have_text(re.compile(rf"^{270 - labelled(0.15)} "))
    assert len(site.heads.sql("SELECT run_id FROM runs")) == runs


def test_a_figure_and_its_data_are_taken_along(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/metrics?metric=induction&probe=random_repeat&model={MODEL}")
    drawn = chart(page)
    expect(drawn.get_by_text("(attention probability)")).to_be_visible()
    page.get_by_role("button", name="Download", exact=False).last.click()
    with Image.open(io.BytesIO(download(page, "PNG"))) as picture:
        picture.verify()
        # At 300 dots an inch: a whole column of a paper is 3.3 inches wide.
        assert picture.format == "PNG"
        assert picture.width >= 300 * 3.3
    assert b"<svg" in download(page, "SVG")[:200]
    assert download(page, "PDF").startswith(b"%PDF-")
    taken = pd.read_csv(io.BytesIO(download(page, "CSV")))
    known = site.heads.sql(
        "SELECT layer, head, value FROM scores WHERE model = :m AND metric = 'induction' "
        "AND probe = 'random_repeat' ORDER BY layer, head",
        m=MODEL,
    ).pandas()
    ordered = taken.sort_values(["layer", "head"])[["layer", "head", "value"]]
    pd.testing.assert_frame_equal(ordered.reset_index(drop=True), known, check_dtype=False)


def test_dragged_points_are_carried_to_heads(page: Page, site: Site) -> None:
    page.goto(
        f"{site.address}/metrics?metric=induction&probe=random_repeat&model={MODEL}"
        "&view=against+another&against+metric=previous_token&against+probe=random_repeat"
    )
    plot = chart(page).locator(".mark-symbol.role-mark").first
    settle(page)
    area = plot.bounding_box()
    assert area is not None
    # The right half: heads whose induction is above about half of the largest.
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 1)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.8, area["y"] + area["height"] / 2, steps=4)
    page.mouse.move(area["x"] + area["width"] - 1, area["y"] + area["height"] - 1, steps=4)
    page.mouse.up()
    link = page.get_by_role("link", name="selected heads on the page Heads")
    expect(link).to_be_visible()
    selected = int(re.sub(r"\D", "", link.text_content() or ""))
    assert 0 < selected < 30
    page.goto(f"{site.address}/{(link.get_attribute('href') or '').split('/')[-1]}")
    expect(page.get_by_text(f"Heads 1 to {selected} of {selected},")).to_be_visible()


def test_questions_in_sql_stand_in_the_link(page: Page, site: Site) -> None:
    asked: list[object] = []

    def keep(sent: object) -> None:
        asked.append(sent)

    page.on("websocket", lambda socket: socket.on("framesent", keep))
    page.goto(f"{site.address}/sql")
    settle(page)
    box = page.get_by_role("textbox", name="One SELECT over the views")
    queries = [
        f"SELECT layer, head, value FROM scores WHERE metric = 'induction' AND probe = '{probe}'"
        f" AND model = '{MODEL}' ORDER BY value DESC"
        for probe in ("random_repeat", "random_repeat_bos")
    ]
    for query in queries:
        box.fill(query)
        asked.clear()
        box.press("Control+Enter")
        expect(page.get_by_text("270 rows in")).to_be_visible()
        expect(page).to_have_url(
            re.compile(f"probe+%3D+%27{query.split(chr(39))[3]}%27".replace("+", r"\+"))
        )
        settle(page)
        assert len(asked) == 1
    page.go_back()
    expect(box).to_have_value(queries[0])
    expect(cells(page, 3, table=-1).first).to_have_text(re.compile(r"^0\.89"))
    for name, value in (("Chart", "heat map"), ("X", "layer"), ("Y", "head"), ("Colour", "value")):
        choose(page, name, value)
    expect(chart(page).locator(".mark-rect.role-mark path")).to_have_count(270)


def test_a_model_that_is_published_meanwhile_is_there_and_compared(
    page: Page, site: Site, smollm2: Path, tmp_path: Path
) -> None:
    """One head of the real model is lesioned: it attends to all tokens alike."""
    page.goto(site.address)
    expect(page.get_by_text("1 of 1 models")).to_be_visible()

    probe = tmp_path / "repeats.jsonl"
    blocks = (
        torch.randperm(40_000, generator=torch.Generator().manual_seed(3))[:60] + 100
    ).tolist()
    lines: list[Any] = [{"probe": {"kind": "random_repeat", "period": 30}}]
    lines += [{"tokens": 2 * blocks[place : place + 30]} for place in (0, 30)]
    probe.write_text("\n".join(map(json.dumps, lines)))
    _lesion(smollm2, tmp_path / LESIONED, layer=18, head=6)
    for model in (smollm2, tmp_path / LESIONED):
        asked = IngestRequest(model=str(model), suites=("patterns",), probe=str(probe), only=True)
        ingest(site.heads, asked)

    # Any choice runs the page again.
    page.get_by_role("combobox", name="Architecture").click()
    page.get_by_role("option", name="llama").click()
    expect(page.get_by_text("2 of 2 models")).to_be_visible()
    page.goto(
        f"{site.address}/compare?first={MODEL}&second={LESIONED}&metric=induction&probe=repeats"
    )
    expect(chart(page).locator(".mark-rect.role-mark path")).to_have_count(270)
    expect(cells(page, 1).first).to_have_text(re.compile(rf"head={TOP}$"))
    before, after, difference = (cells(page, column).first for column in (3, 4, 5))
    assert float(before.text_content() or "") > 0.8
    assert float(after.text_content() or "") < 0.05
    assert float(difference.text_content() or "") < -0.75


def _lesion(source: Path, to: Path, *, layer: int, head: int) -> None:
    """Write a model whose one head has queries of zeros."""
    prepared = loading.prepare(resolve(str(source)))
    model = loading.load(prepared, device="cpu", dtype="float32").model
    size = model.config.head_dim
    query = model.model.layers[layer].self_attn.q_proj.weight
    with torch.no_grad():
        query[head * size : (head + 1) * size] = 0
    model.save_pretrained(to)
