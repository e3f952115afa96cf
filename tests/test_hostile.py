"""Every page over a catalog whose texts were written to do harm, in a real browser."""

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import browsing
import hostile
import pytest
from browsing import serving, shoot
from playwright.sync_api import Page, expect

from ui.site._texts import plain, short

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

browser, page = browsing.browser, browsing.page

LONG_METRIC = f"metric {hostile.LONG}"
VIEWS: dict[str, tuple[str, dict[str, str | list[str]]]] = {
    "overview": ("", {}),
    "heads": ("heads", {}),
    "heads, long": ("heads", {"model": hostile.LONG_MODEL, "token": hostile.EVIL}),
    "category map": ("category_map", {"model": [hostile.MODEL, hostile.LONG_MODEL]}),
    "layer bins": ("layer_bins", {"model": [hostile.MODEL, hostile.LONG_MODEL]}),
    "patterns": ("patterns", {"model": [hostile.MODEL, hostile.LONG_MODEL]}),
    "token classes": ("token_classes", {}),
    "map": ("metrics", {"model": [hostile.MODEL, hostile.LONG_MODEL]}),
    "long map": ("metrics", {"metric": LONG_METRIC, "model": hostile.MODEL}),
    "distribution": ("metrics", {"view": "distribution", "model": hostile.LONG_MODEL}),
    "against another": ("metrics", {"view": "against another", "metric": LONG_METRIC}),
    "by depth": ("metrics", {"view": "by depth", "model": hostile.LONG_MODEL}),
    "ranking": ("metrics", {"view": "ranking", "metric": LONG_METRIC}),
    "compare": ("compare", {"first": hostile.MODEL, "second": hostile.TWIN}),
    "head": ("head", {"model": hostile.MODEL, "head": "L0H0"}),
    "long head": ("head", {"model": hostile.LONG_MODEL, "head": "L1H1"}),
    "no head": ("head", {"model": f"nobody {hostile.EVIL}", "head": "L0H0"}),
    "sql": ("sql", {"query": "SELECT * FROM models"}),
    "wrong sql": ("sql", {"query": f"SELECT '{hostile.LONG}' FROM \"{hostile.LONG}\""}),
    "jobs": ("jobs", {"job": "1"}),
    "long job": ("jobs", {"job": "2"}),
    "schedules": ("jobs", {"part": "schedules"}),
    "workers": ("jobs", {"part": "workers"}),
}
INTERPRETED = """() => {
    const main = document.querySelector("[data-testid=stMain]");
    const found = {};
    const rule = (name, selector) => {
        const all = [...main.querySelectorAll(selector)].map(one => one.outerHTML.slice(0, 200));
        if (all.length) found[name] = all;
    };
    rule("link", 'a[href^="http://evil"], a[href^="mailto:"]');
    rule("image", 'img[src="x"], img[src*="evil"], img[alt*="treamlit"]');
    rule("script", "script");
    rule("formula", ".katex");
    rule("colour", ".stMarkdownColoredText, .stMarkdownColoredBackground");
    rule("emphasis", "[data-testid=stMarkdownContainer] :is(strong, em, del)");
    rule("icon", "[data-testid=stMarkdownContainer] [data-testid=stIconMaterial]");
    for (const one of main.querySelectorAll("[data-testid=stMarkdownContainer]"))
        for (const sign of ["\\u{1f604}", "\\u2192", "\\u2014", "\\u202e", "\\u2066"])
            if (one.innerText.includes(sign)) found[sign] = one.innerText.slice(0, 200);
    for (const one of main.querySelectorAll("[data-testid=stMarkdownContainer] code"))
        if (!one.textContent.startsWith("heads ")) found["code"] = one.textContent;
    // A chart that is too wide is drawn smaller, and in the end not to be seen.
    for (const one of main.querySelectorAll("svg.marks, canvas.marks"))
        if (one.getBoundingClientRect().height < 90) found["flat"] = one.outerHTML.slice(0, 99);
    // A canvas has scroll bars of its own; what is cut off by its parent is cut off.
    const room = main.scrollWidth - main.clientWidth;
    if (room > 0) found["wider than the window, in pixels"] = room;
    return found;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.make(folder)
    with serving(folder) as served:
        yield served.address


def visit(page: Page, site: str, path: str, **asked: str | list[str]) -> None:
    page.goto(f"{site}/{path}?{urlencode(asked, doseq=True)}")
    settle(page)


def settle(page: Page) -> None:
    expect(page.get_by_test_id("stMain").get_by_role("heading").first).to_be_visible()
    expect(page.locator("[data-test-script-state=running]")).to_have_count(0)
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)


@pytest.mark.parametrize("view", VIEWS)
def test_texts_are_shown_as_text(page: Page, site: str, view: str) -> None:
    path, asked = VIEWS[view]
    visit(page, site, path, **asked)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert page.evaluate(INTERPRETED) == {}
    shoot(page, f"hostile_{view.replace(' ', '_')}")


def test_links_with_such_names_lead_where_they_say(page: Page, site: str) -> None:
    visit(page, site, "category_map", model=hostile.MODEL)
    page.locator(".vega-embed .mark-rect.role-mark path").nth(5).click()
    expect(page).to_have_url(re.compile(r"/head\?model=.*&head=L1H1$"))
    settle(page)
    expect(page.get_by_role("combobox", name="Model")).to_have_value(short(hostile.MODEL))
    page.get_by_role("button", name="Next L1H2").click()
    expect(page).to_have_url(re.compile(r"head=L1H2$"))

    visit(page, site, "heads")
    page.get_by_role("button", name=re.compile(r"^twin")).click()
    settle(page)
    expect(page.get_by_text("Heads 1 to 12 of 12")).to_be_visible()
    page.get_by_text("SQL of all these heads").click()
    page.get_by_role("link", name="Open on the page SQL").click()


def test_what_a_head_s_page_shows_when_it_is_asked_for_is_text_too(page: Page, site: str) -> None:
    visit(page, site, "head", model=hostile.MODEL, head="L0H0")
    page.get_by_role("button", name=re.compile(r"^Run \d+, ")).first.click()
    expect(page.get_by_test_id("stJson")).to_be_visible()
    assert page.evaluate(INTERPRETED) == {}
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Cite").click()
    expect(page.get_by_test_id("stCode").last).to_contain_text("@misc")
    assert page.evaluate(INTERPRETED) == {}


def test_a_long_name_is_cut_where_there_is_no_room_and_whole_elsewhere(
    page: Page, site: str
) -> None:
    visit(page, site, "head", model=hostile.LONG_MODEL, head="L0H0")
    expect(page.get_by_role("combobox", name="Model")).to_have_value(short(hostile.LONG_MODEL))
    page.get_by_role("button", name="Cite").click()
    expect(page.get_by_test_id("stCode").last).to_contain_text(hostile.LONG)
    visit(page, site, "compare", first=hostile.MODEL, second=hostile.LONG_MODEL)
    expect(page.get_by_role("combobox", name="Second")).to_have_value(short(hostile.LONG_MODEL))
    assert page.evaluate(INTERPRETED) == {}


def test_plain_leaves_ordinary_names_alone() -> None:
    for name in ("SmolLM2-135M-Instruct.Q4_1", "org/model-7b", "relation_score", "a, b"):
        assert plain(name).replace("\\,", ",") == name
    for name in ("L5H3: 0.5", "a - b", "__init__", "a_b_", "1. a", "relation_score[x]"):
        assert plain(name) != plain(name).replace("\\", "") == name
    assert short("x" * 60) == "x" * 60
    assert len(short("x" * 61)) == 60
