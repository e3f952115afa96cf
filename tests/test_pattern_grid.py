"""Figure three: the pattern grid as a value, and as files."""

from pathlib import Path
from typing import Any

import altair as alt
import catalogs
import pandas as pd
import pytest

from catalog.errors import UsageError
from ui import charts
from ui.charts.pattern_grid import columns


def cells(
    heads: list[str], tokens: list[str], model: str = "m", value: float | None = None
) -> pd.DataFrame:
    """As `catalog.patterns.cells` gives them: uniform attention, or one value everywhere."""
    return pd.DataFrame(
        {
            "model": model,
            "name": name,
            "query": query,
            "key": key,
            "query_token": tokens[query],
            "key_token": tokens[key],
            "value": 1 / (query + 1) if value is None else value,
        }
        for name in heads
        for query in range(len(tokens))
        for key in range(query + 1)
    )


def drawn(chart: alt.VConcatChart) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict()
    return spec


def test_heads_stand_in_the_order_given_and_models_under_each_other() -> None:
    names = ["L5H5", "L0H1", "L11H2"]
    frame = pd.concat([cells(names, list("abc"), "b"), cells(names[:2], list("abcd"), "a")])
    spec = drawn(charts.pattern_grid(frame))
    titles = [
        (grid["title"]["text"], [panel["title"]["text"] for panel in grid["concat"]])
        for grid in spec["vconcat"]
    ]
    assert titles == [("b", names), ("a", names[:2])]
    assert [grid["columns"] for grid in spec["vconcat"]] == [3, 2]
    assert spec["resolve"]["scale"]["color"] == "shared"


@pytest.mark.parametrize(
    ("panels", "across"), [(1, 1), (8, 8), (9, 3), (12, 4), (36, 6), (64, 8), (100, 8)]
)
def test_columns_are_those_of_the_published_figure(panels: int, across: int) -> None:
    assert columns(panels) == across


def test_a_part_of_a_prompt_with_as_many_side_by_side_as_asked() -> None:
    frame = cells(["L0H0", "L0H1", "L0H2"], list("abcdef"))
    part = frame[(frame["key"] >= 2) & (frame["query"] <= 4)]
    [grid] = drawn(charts.pattern_grid(part, across=2))["vconcat"]
    assert grid["columns"] == 2
    for axis in ("x", "y"):
        assert grid["concat"][0]["encoding"][axis]["scale"]["domain"] == [2, 3, 4]


def test_one_scale_from_light_to_dark_blue_whatever_the_values() -> None:
    frame = pd.concat([cells(["L0H0"], list("ab"), value=0.01), cells(["L0H1"], list("ab"))])
    for panel in drawn(charts.pattern_grid(frame))["vconcat"][0]["concat"]:
        color = panel["encoding"]["color"]
        assert color["scale"]["domain"] == [0, 1]
        light, dark = color["scale"]["range"][0], color["scale"]["range"][-1]
        assert [int(light[i : i + 2], 16) > 240 for i in (1, 3, 5)] == [True] * 3
        assert int(dark[5:], 16) > 2 * int(dark[3:5], 16) > 4 * int(dark[1:3], 16)
        assert color["legend"]["title"] == "Attention"


def test_only_keys_up_to_the_query_are_drawn_and_each_cell_tells_its_tokens() -> None:
    tokens = ["the", " cat", "\n"]
    frame = pd.concat([cells(["L0H0"], tokens), cells(["L0H1"], tokens, value=0.5)])
    spec = drawn(charts.pattern_grid(frame))
    panel = spec["vconcat"][0]["concat"][0]
    found = spec["datasets"][panel["data"]["name"]]
    assert [(row["q"], row["k"], row["v"]) for row in found] == [
        (0, 0, 1.0),
        (1, 0, 0.5),
        (1, 1, 0.5),
        (2, 0, 0.3333),
        (2, 1, 0.3333),
        (2, 2, 0.3333),
    ]
    assert panel["encoding"]["y"]["scale"]["domain"] == [0, 1, 2]
    assert [one["title"] for one in panel["encoding"]["tooltip"]] == ["Query", "Key", "Attention"]
    looked_up = [(one["lookup"], one["as"]) for one in panel["transform"]]
    assert looked_up == [("q", ["query"]), ("k", ["key"])]
    texts = panel["transform"][0]["from"]["data"]
    texts = spec["datasets"][texts["name"]] if "name" in texts else texts["values"]
    assert [row["token"] for row in texts] == ["0: 'the'", "1: ' cat'", "2: '\\n'"]


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_hostile_tokens_and_names_stay_text(tmp_path: Path, suffix: str) -> None:
    frame = cells(["L0H0"], [catalogs.HOSTILE, "\N{GRINNING FACE}"], catalogs.HOSTILE)
    path = tmp_path / f"grid.{suffix}"
    charts.save(charts.pattern_grid(frame), path)
    assert catalogs.HOSTILE.encode() not in path.read_bytes()


def test_the_published_size_can_be_drawn(tmp_path: Path) -> None:
    """36 heads on 64 tokens: 74,880 cells."""
    heads = [f"L{layer}H{head}" for layer in range(6) for head in range(6)]
    frame = cells(heads, [str(place) for place in range(64)])
    charts.save(charts.pattern_grid(frame), tmp_path / "grid.png")
    content = (tmp_path / "grid.png").read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    # Two pixels per unit; 64 cells of a whole number of pixels in each of 6 panels.
    assert width > 2 * 6 * 64
    assert height > 2 * 6 * 64


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(UsageError, match="lacks the column value"):
        charts.pattern_grid(cells(["L0H0"], ["a"]).drop(columns="value"))
    with pytest.raises(UsageError, match="there is no pattern to draw"):
        charts.pattern_grid(cells(["L0H0"], ["a"]).iloc[:0])
