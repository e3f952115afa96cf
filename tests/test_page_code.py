"""The code and the command beside each chart draw the chart that the page shows."""

import re
import shlex
from pathlib import Path
from typing import Any

import catalogs
import pytest
import test_page_metrics
from published import begin, metric, model, probe, publish
from streamlit.testing.v1 import AppTest
from test_stored_patterns import prompt, softmaxed, store
from typer.testing import CliRunner

from catalog import Catalog
from ingest.classify import FUNCTION
from ui import charts
from ui.cli.main import app
from ui.site import _parts

UI = Path(__file__).parents[1] / "ui"
QUERY = "SELECT model, layer, head, value FROM scores WHERE metric = 'induction' AND head < 2"

Asked = dict[str, str | list[str]]
LABELLED: Asked = {"model": ["base", "long"], "taxonomy": "role"}
VIEWS: dict[str, tuple[str, Asked]] = {
    "map": ("category_map", LABELLED),
    "moved map": ("category_map", {"model": ["ruled"], "relation_score from": "0.4"}),
    "map of no label": ("category_map", {"model": ["ruled"], "relation_score from": "1.0"}),
    "bins": ("layer_bins", LABELLED | {"bins": "2"}),
    "widths in shares": (
        "layer_bins",
        LABELLED | {"bins by": "width", "layers per bin": "2", "heights": "shares"},
    ),
    "tokens": (
        "token_classes",
        {"model": ["masses", "more"], "unit": "mean", "layer": ["0", "2"], "class": ["hash"]},
    ),
    "metric": ("metrics", {"model": ["tuned", "long"], "metric": "signed"}),
    "stretched": ("metrics", {"model": ["tuned"], "stretch": "yes"}),
    "distribution": ("metrics", {"model": ["tuned", "long"], "view": "distribution"}),
    "scatter": ("metrics", {"view": "against another", "against metric": "signed"}),
    "depth": ("metrics", {"model": ["long"], "view": "by depth", "bins": "5"}),
    "depth of all": ("metrics", {"view": "by depth", "all models": "yes"}),
    "difference": ("compare", {"first": "base", "second": "tuned"}),
    "by depth": ("compare", {"first": "base", "second": "long"}),
    "head": ("head", {"model": "m", "head": "L0H0"}),
    **{
        f"answer as {kind}": (
            "sql",
            {"query": QUERY, "chart": kind, "x": "layer", "y": "head", "colour": "value"},
        )
        for kind in charts.RESULT_KINDS
    },
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalog that has something for every chart."""
    folder = tmp_path_factory.mktemp("code")
    made = test_page_metrics.fill(catalogs.make(folder, {}), folder)
    for name, mass in (("masses", 0.25), ("more", 0.5)):
        catalogs.add_token_masses(made, name, {"hash": [[mass, 0.125]] * 3})
    _add_rules(made)
    store(made, prompt({(0, 0): softmaxed(0)}))
    return folder


def _add_rules(made: Catalog) -> None:
    """A model with labels by rule, whose thresholds can be moved."""
    measured = [metric("relation_score", "copying")]
    shipped = [probe("shipped", category="Algorithmic")]
    values = [[(4 * layer + head) / 20 for head in range(4)] for layer in range(3)]
    run = begin(made, "ruled", of=model("ruled"), metrics=measured, probes=shipped)
    publish(made, run, values, metrics=measured, probes=shipped, taxonomies=[FUNCTION])


def picture(chart: Any) -> str:
    return plain(charts.render(chart, ".svg").decode())


def plain(svg: str) -> str:
    """SVG without what a click needs, and the numbers that a process gives to what it draws."""
    still = re.sub(r' (class|cursor|style)="[^"]*"', "", svg)
    return re.sub(r"(clip|gradient_)\d+", r"\1", still)


@pytest.mark.parametrize("view", VIEWS)
def test_code_and_command_draw_what_the_page_shows(
    view: str, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, asked = VIEWS[view]
    monkeypatch.setenv("HEADS_DATABASE_URL", f"duckdb:///{filled / 'heads.duckdb'}")
    shown: list[Any] = []
    figure = _parts.figure

    def watched(chart: Any, *args: Any, **kwargs: Any) -> Any:
        shown.append(chart)
        return figure(chart, *args, **kwargs)

    monkeypatch.setattr(_parts, "figure", watched)
    page = AppTest.from_file(UI / "app.py", default_timeout=60).run()
    page.query_params.clear()
    page.query_params.update(asked)
    shown.clear()
    page.switch_page(f"site/{name}.py").run()
    assert not page.exception
    assert not page.error
    assert len(shown) == len(page.get("vega_lite_chart")) > 0
    codes = [one.value for one in page.code if "charts.save(" in one.value]
    commands = [one.value for one in page.code if one.value.startswith("heads chart ")]
    assert len(codes) == len(shown)
    assert len(commands) == len(shown)

    monkeypatch.chdir(tmp_path)
    for chart, code in zip(shown, codes, strict=True):
        names: dict[str, Any] = {}
        exec(code, names)  # noqa: S102 - is what a reader would run
        [saved] = tmp_path.glob("*.pdf")
        assert saved.read_bytes().startswith(b"%PDF-")
        saved.unlink()
        assert picture(names["chart"]) == picture(chart)
    for chart, command in zip(shown, commands, strict=True):
        program, *words = shlex.split(command)
        assert program == "heads"
        words[-1] = "drawn.svg"
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0, answer.output
        assert plain((tmp_path / "drawn.svg").read_text()) == picture(chart)
