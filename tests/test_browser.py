"""The served page in a real browser."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import browsing
import catalogs
import pytest
from browsing import chart, serving, shoot, visit
from playwright.sync_api import Page, expect

from catalog.database import Database
from ui import charts, launch

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

browser, page = browsing.browser, browsing.page
BIG = "big/model"
LABELS = [
    *catalogs.published_labels("gpt2-xl"),
    (BIG, 0, 0, "function", "Knowledge"),
    (catalogs.HOSTILE, 0, 1, "function", "Linguistic"),
    (catalogs.HOSTILE, 0, 1, "function", "<img src=x onerror=alert(2)>"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page over a small catalog."""
    folder = tmp_path_factory.mktemp("site")
    layouts = {"gpt2-xl": (48, 25), BIG: (80, 64), catalogs.HOSTILE: (2, 3)}
    made = catalogs.make(folder, layouts, LABELS)
    for name in ("base", "tuned"):
        masses = {c: [[0.125, 0.25]] * 28 for c in ("hash", "star", "whitespace", "newline")}
        catalogs.add_token_masses(made, name, masses)
    with serving(folder) as served:
        yield served.address


def test_the_map_draws_every_head_and_tells_why(page: Page, site: str) -> None:
    drawn = visit(page, site, model="gpt2-xl", taxonomy="description_verdict")
    expect(page.get_by_role("heading", name="Category map")).to_be_visible()
    expect(drawn.locator(".mark-rect.role-mark path")).to_have_count(48 * 25)
    for text in (*catalogs.VERDICTS, "Unclassified", "Layer", "Head", "gpt2-xl"):
        expect(drawn.get_by_text(text, exact=True).first).to_be_visible()
    drawn.locator(".mark-rect.role-mark path").first.hover()
    tooltip = page.locator("#vg-tooltip-element")
    expect(tooltip).to_contain_text("L0H0")
    expect(tooltip).to_contain_text("described, plausible: a reader (human)")
    shoot(page, "category_map")


def test_a_large_model_is_drawn_on_a_canvas(page: Page, site: str) -> None:
    drawn = visit(page, site, model=BIG, taxonomy="function")
    colors = drawn.locator("canvas").evaluate(
        """canvas => {
            const {width, height} = canvas;
            const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
            const seen = {};
            for (let i = 0; i < data.length; i += 4) {
                const color = [data[i], data[i + 1], data[i + 2]].join();
                seen[color] = (seen[color] || 0) + 1;
            }
            return seen;
        }"""
    )
    cell = 10 * 10
    assert colors["211,211,211"] >= (80 * 64 - 1) * cell
    assert colors["255,127,14"] >= cell
    shoot(page, "category_map_80x64")


def test_pages_share_the_choice_and_bins_show_percentages(page: Page, site: str) -> None:
    visit(page, site, model="gpt2-xl", taxonomy="description_verdict")
    page.get_by_role("link", name="Layer bins").click()
    expect(page.get_by_role("heading", name="Layer bins")).to_be_visible()
    drawn = chart(page)
    for share in ("12.1%", "66.7%", "21.2%", "48.5%", "36.4%", "79.4%", "26.5%", "55.9%", "3.0%"):
        expect(drawn.get_by_text(share, exact=True).first).to_be_visible()
    expect(page).to_have_url(re.compile(r"/layer_bins\?model=gpt2-xl&taxonomy=description_verdict"))
    shoot(page, "layer_bins")


def test_token_classes_show_two_models_side_by_side(page: Page, site: str) -> None:
    drawn = visit(page, site, "/token_classes", model=["base", "tuned"], layer=["0", "27"])
    for text in ("Layer 0", "Layer 27", "hash", "star", "whitespace", "Total attention (sum)"):
        expect(drawn.get_by_text(text, exact=True).first).to_be_visible()
    for name in ("base", "tuned"):
        expect(drawn.get_by_text(name, exact=True)).to_have_count(2)
    shoot(page, "token_classes")


def test_a_link_opens_the_same_view(page: Page, site: str) -> None:
    models = ["gpt2-xl", catalogs.HOSTILE]
    drawn = visit(page, site, "/layer_bins", model=models, taxonomy="description_verdict", bins="2")
    for text in (*models, "[0, 24)", "[24, 48)", "[0, 1)", "[1, 2)"):
        expect(drawn.get_by_text(text, exact=True).first).to_be_visible()
    shoot(page, "layer_bins_two_models")


def test_a_choice_goes_to_the_url_and_back_undoes_it(page: Page, site: str) -> None:
    drawn = visit(page, site, model="gpt2-xl", taxonomy="function")
    page.get_by_role("combobox", name="Models").click()
    page.get_by_role("option", name=BIG).click()
    expect(page).to_have_url(re.compile(r"model=gpt2-xl&model=big%2Fmodel"))
    expect(page.get_by_test_id("stMultiSelect")).to_contain_text(BIG)
    page.go_back()
    expect(page.get_by_test_id("stMultiSelect")).not_to_contain_text(BIG)
    expect(drawn.get_by_text("gpt2-xl", exact=True).first).to_be_visible()


@pytest.mark.parametrize("path", ["/category_map", "/layer_bins"])
def test_hostile_names_run_nothing(page: Page, site: str, path: str) -> None:
    drawn = visit(page, site, path, model=[catalogs.HOSTILE, "<b>"], taxonomy="function")
    expect(drawn.get_by_text(catalogs.HOSTILE, exact=True).first).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_contain_text("no model '<b>'")
    shoot(page, f"hostile{path.replace('/', '_')}")


def test_an_exported_page_needs_no_server(page: Page, tmp_path: Path) -> None:
    made = catalogs.make(tmp_path, {"</script><script>alert(1)</script>": (2, 2)})
    frame = made.sql(
        "SELECT h.*, 2 AS n_layers, 2 AS n_heads, 'a' AS label, 'human' AS source, "
        "NULL AS confidence, '<img src=x onerror=alert(3)>' AS reason, NULL AS scores FROM heads h"
    ).pandas()
    charts.save(charts.category_map(frame, taxonomy="mine"), tmp_path / "map.html")
    page.goto((tmp_path / "map.html").as_uri())
    chart(page)
    page.mouse.move(50, 40)
    expect(page.locator("#vg-tooltip-element")).to_contain_text("onerror")


def test_the_page_listens_where_it_was_told(site: str) -> None:
    command = launch.command(port=1, address="127.0.0.1")
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command
    port = int(site.rsplit(":", 1)[1])
    others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)]
    for address in {str(other) for other in others} - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError):  # noqa: PT011 - refused or unreachable, as the system says it
            socket.create_connection((address, port), timeout=2)


def test_a_relative_database_is_meant_from_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Database("duckdb:///heads.duckdb", lock_timeout=0)
    url = launch.environment(relative)["HEADS_DATABASE_URL"]
    assert Database(url, lock_timeout=0).path == tmp_path / "heads.duckdb"
    server = Database("postgresql://someone:s3cret@host/heads", lock_timeout=0)
    assert "s3cret@host" in launch.environment(server)["HEADS_DATABASE_URL"]
