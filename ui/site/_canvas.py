"""Attention patterns on canvases, which a browser draws ten times as fast as a chart of cells."""

import base64
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import streamlit as st

from catalog.patterns import StoredPattern
from ui.charts.pattern_grid import colors, columns, shown
from ui.site import _parts

WIDTH = 1120
"""Pixels of a page 1280 wide, within its margins."""
_HTML = """
<div class="patterns">
  <div class="drawn"></div>
  <div class="cell" hidden></div>
  <div class="tip" role="tooltip" hidden></div>
  <div class="spoken" aria-live="polite" style="position: absolute; left: -9999px"></div>
</div>
"""
_GAP, _LABEL, _TITLE, _BETWEEN, _LEGEND, _FRAME = 12, 16, 20, 20, 28, 2
"""Pixels, as pattern_canvas.css has them."""
_LARGEST = 420
_LARGEST_CELL = 24

_here = files("ui.site")
_draw = st.components.v2.component(
    "head_catalog_patterns",
    html=_HTML,
    css=(_here / "pattern_canvas.css").read_text(),
    js=(_here / "pattern_canvas.js").read_text(),
)


def pattern_canvas(
    grids: Sequence[Sequence[StoredPattern]],
    *,
    first: int,
    last: int,
    across: int | None,
    key: str,
) -> tuple[str, str] | None:
    """A grid of heatmaps for each model, one under the other, in the order given.

    Args:
        grids: Of each model its patterns, all on one prompt; none empty.
        first: The first position that is shown, as query and as key; each prompt is longer.
        last: The last one, where the prompt has as many tokens.
        across: How many stand side by side; as the chart does it where None.
        key: Of the widget.

    Returns:
        The model and name of the head that the reader opens, if it was just now.
    """
    cell = min(_cell(grid, first, last, across) for grid in grids)
    sections = [_section(grid, first, last, across, cell) for grid in grids]
    widest = max(section["side"] for section in sections)
    height = _LEGEND + sum(_height(section) for section in sections)
    drawn = _draw(
        key=key,
        data={"colors": colors(), "sections": sections, "widest": widest},
        height=height,
        on_head_change=lambda: None,
    )
    opened = drawn["head"]
    return None if opened is None else (str(opened["model"]), str(opened["name"]))


def _cell(grid: Sequence[StoredPattern], first: int, last: int, across: int | None) -> int:
    """Pixels of a cell's side that fit, a whole number as in the chart."""
    across = across or columns(len(grid))
    room = min((WIDTH - (across - 1) * _GAP) // across - _FRAME, _LARGEST)
    return min(max(room // len(grid[0].tokens[first : last + 1]), 1), _LARGEST_CELL)


def _section(
    grid: Sequence[StoredPattern], first: int, last: int, across: int | None, cell: int
) -> dict[str, Any]:
    tokens = grid[0].tokens[first : last + 1]
    return {
        "model": grid[0].model,
        "tokens": [shown(first + place, one) for place, one in enumerate(tokens)],
        "across": across or columns(len(grid)),
        "side": cell * len(tokens) + _FRAME,
        "panels": [
            {
                "name": one.name,
                "href": _parts.head_address(one.model, one.name),
                "numbers": _packed(one, first, last),
            }
            for one in grid
        ],
    }


def _packed(one: StoredPattern, first: int, last: int) -> str:
    """The attention of each query to the keys up to itself, as it is stored."""
    square = one.numpy()[first : last + 1, first : last + 1]
    numbers = square[np.tril_indices(len(square))].astype("<f2")
    return base64.b64encode(numbers.tobytes()).decode()


def _height(section: dict[str, Any]) -> int:
    rows = math.ceil(len(section["panels"]) / section["across"])
    return int(rows * (_LABEL + section["side"]) + (rows - 1) * _GAP + _TITLE + _BETWEEN)
