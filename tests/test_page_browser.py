"""From the category map to a head, in a real browser."""

import re
from collections.abc import Iterator

import browsing
import catalogs
import pytest
from browsing import serving, shoot, visit
from playwright.sync_api import Browser, Page, expect
from published import begin, model, publish

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

browser, page = browsing.browser, browsing.page
MEASURED = "org/measured & more"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page over two models."""
    folder = tmp_path_factory.mktemp("site")
    made = catalogs.make(folder, {"gpt2-xl": (48, 25)}, catalogs.published_labels("gpt2-xl"))
    values = [[(4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
    publish(made, begin(made, of=model(MEASURED)), values)
    with serving(folder) as served:
        yield served.address


def expect_head(page: Page, model: str, name: str) -> None:
    expect(page.get_by_role("heading", name="Head", exact=True)).to_be_visible()
    expect(page.get_by_role("combobox", name="Model")).to_have_value(model)
    expect(page.get_by_role("textbox", name="Head")).to_have_value(name)
    expect(page.get_by_role("button", name="Previous")).to_be_visible()


def test_the_first_link_into_a_fresh_server_has_the_site_around_it(page: Page, site: str) -> None:
    page.goto(f"{site}/head?model=gpt2-xl&head=L1H2")
    expect_head(page, "gpt2-xl", "L1H2")
    expect(page.get_by_role("link", name="Overview")).to_be_visible()
    expect(page.get_by_test_id("stSidebar")).to_have_count(0)


def test_a_click_on_a_cell_opens_its_head_and_back_shows_the_map(
    page: Page, browser: Browser, site: str
) -> None:
    models = ["gpt2-xl", MEASURED]
    drawn = visit(page, site, model=models, taxonomy="description_verdict")
    # The second panel's: 48 x 25 cells come first, then layer by layer of four heads.
    drawn.locator(".mark-rect.role-mark path").nth(48 * 25 + 2 * 4 + 3).click()
    expect(page).to_have_url(re.compile(r"/head\?model=org%2Fmeasured\+%26\+more&head=L2H3$"))
    expect_head(page, MEASURED, "L2H3")
    expect(page.get_by_role("button", name="Previous L2H2")).to_be_visible()
    shoot(page, "head")

    fresh = browser.new_page(viewport={"width": 1280, "height": 1100})
    fresh.goto(page.url)
    expect_head(fresh, MEASURED, "L2H3")
    fresh.close()

    page.go_back()
    expect(page.get_by_role("heading", name="Category map")).to_be_visible()
    for name in models:
        expect(page.get_by_test_id("stMultiSelect")).to_contain_text(name)


def test_previous_and_next_are_in_the_address_and_back_undoes_them(page: Page, site: str) -> None:
    page.goto(f"{site}/head?model=gpt2-xl&head=L0H24")
    page.get_by_role("button", name="Next L1H0").click()
    expect(page).to_have_url(re.compile(r"head=L1H0$"))
    expect_head(page, "gpt2-xl", "L1H0")
    page.go_back()
    expect_head(page, "gpt2-xl", "L0H24")


def test_the_site_begins_with_the_overview(page: Page, site: str) -> None:
    page.goto(site)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame")).to_have_count(3)
    expect(page.get_by_text("2 of 2 models")).to_be_visible()
    shoot(page, "overview")
