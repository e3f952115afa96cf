"""Pages without a browser."""

import functools
from collections.abc import Callable
from pathlib import Path

from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

# Every AppTest looks for components in all installed packages, 0.1 s; these stay the same.
manifest_scanner.scan_component_manifests = functools.cache(
    manifest_scanner.scan_component_manifests
)

UI = Path(__file__).parents[1] / "ui"

Open = Callable[..., AppTest]
"""Opens a page by its name with what its address asks for."""


def open_alone(name: str, **asked: str | list[str]) -> AppTest:
    """A page as Streamlit runs it by itself: it cannot link to others."""
    page = AppTest.from_file(UI / "site" / f"{name}.py", default_timeout=60)
    page.query_params.update(asked)
    return healthy(page.run())


def open_in_site(name: str, **asked: str | list[str]) -> AppTest:
    """A page to which a reader of the site has gone, whose first one is the overview."""
    page = AppTest.from_file(UI / "app.py", default_timeout=60).run()
    page.query_params.clear()
    page.query_params.update(asked)
    return healthy(page.switch_page(f"site/{name}.py").run())


def healthy(page: AppTest) -> AppTest:
    assert not page.exception
    return page


def shown_counts(page: AppTest) -> dict[str, str]:
    """The category map's table: what it says of each category of the first model."""
    [table] = healthy(page).table
    return dict(zip(table.value.index, table.value.iloc[:, 0], strict=True))
