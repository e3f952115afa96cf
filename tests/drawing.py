"""Heads to draw, and what a chart draws of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import catalogs
import pandas as pd


def heads(
    layout: tuple[int, int], labels: Mapping[tuple[int, int], Sequence[str]], model: str = "m"
) -> pd.DataFrame:
    """What `queries.head_labels` gives: every head, and its labels by people without a word."""
    n_layers, n_heads = layout
    nothing: Sequence[str | None] = [None]
    rows = [
        {
            "model": model,
            "layer": layer,
            "head": head,
            "name": f"L{layer}H{head}",
            "n_layers": n_layers,
            "n_heads": n_heads,
            "label": label,
            "source": None if label is None else "human",
            "confidence": None,
            "reason": None,
            "scores": None,
        }
        for layer in range(n_layers)
        for head in range(n_heads)
        for label in labels.get((layer, head), nothing)
    ]
    return pd.DataFrame(rows)


def published() -> pd.DataFrame:
    labels = {
        (layer, head): [label] for _, layer, head, _, label in catalogs.published_labels("gpt2-xl")
    }
    return heads((48, 25), labels, "gpt2-xl")


def drawn(chart: alt.ConcatChart) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each panel's specification, and its rows."""
    spec = chart.to_dict()
    # Altair lifts data that all panels share, as a single one does with itself, to the figure.
    return [
        (panel, spec["datasets"][panel.get("data", spec.get("data"))["name"]])
        for panel in spec["concat"]
    ]


def color_scale(panel: dict[str, Any]) -> dict[str, str]:
    scale = panel["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


# How much of each colour of light reaches which: Machado, Oliveira and Fernandes 2009.
