"""Charts as files, and who can do without them."""

import re
import subprocess
import sys
from pathlib import Path

import catalogs
import pytest
from drawing import heads

from catalog.errors import UsageError
from ui import charts


class TestSave:
    @pytest.mark.parametrize(
        ("name", "start"),
        [
            ("a.png", b"\x89PNG"),
            ("a.svg", b"<svg"),
            ("a.pdf", b"%PDF-"),
            ("a.html", b"<!DOCTYPE html>"),
            ("a.PNG", b"\x89PNG"),
        ],
    )
    def test_each_format(self, tmp_path: Path, name: str, start: bytes) -> None:
        chart = charts.category_map(heads((2, 2), {}), taxonomy="function")
        charts.save(chart, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_html_needs_no_network(self, tmp_path: Path) -> None:
        charts.save(
            charts.category_map(heads((1, 1), {}), taxonomy="function"), tmp_path / "a.html"
        )
        page = (tmp_path / "a.html").read_text()
        assert not re.search(r"<(script|link)[^>]*(src|href)=", page)

    @pytest.mark.parametrize("name", ["a.eps", "a", "png"])
    def test_other_formats_are_refused(self, tmp_path: Path, name: str) -> None:
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match=r"expected \.png, \.svg, \.pdf, \.html"):
            charts.save(chart, tmp_path / name)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match="there is no folder"):
            charts.save(chart, tmp_path / "nowhere" / "a.svg")

    def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "a.svg").mkdir()
        chart = charts.category_map(heads((1, 1), {}), taxonomy="function")
        with pytest.raises(UsageError, match="cannot be written"):
            charts.save(chart, tmp_path / "a.svg")
        assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]

    @pytest.mark.parametrize(
        "name", [catalogs.HOSTILE, "</script><script>alert(1)</script>", "a.b['c']", "ü\n\\", "%s"]
    )
    def test_hostile_names_stay_text(self, tmp_path: Path, name: str) -> None:
        frame = heads((2, 2), {(0, 0): [name], (1, 1): [name, "other"]}, model=name)
        for chart in (
            charts.category_map(frame, taxonomy=name),
            charts.layer_bins(frame, taxonomy=name),
        ):
            spec = chart.to_dict()["concat"][0]
            assert spec["title"]["text"] == name
            charts.save(chart, tmp_path / "a.html")
            charts.save(chart, tmp_path / "a.svg")
            assert "<script>alert" not in (tmp_path / "a.html").read_text()
            assert "<script" not in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("module", ["ui", "ui.cli.main", "ui.launch"])
def test_readers_without_the_charts_packages_can_import(module: str) -> None:
    code = f"import sys, {module}; print({{'altair', 'streamlit', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
