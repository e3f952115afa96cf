"""One category for every head: its label, how many it has, or `Unclassified`."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import chain

import pandas as pd

from catalog.errors import UsageError
from ui.charts import palette

COLUMNS = (
    "model",
    "layer",
    "head",
    "name",
    "n_layers",
    "n_heads",
    "label",
    "source",
    "confidence",
    "reason",
    "scores",
)
_HEAD = ["model", "layer", "head"]


def categorize(frame: pd.DataFrame) -> pd.DataFrame:
    """Reduce what a taxonomy says to one row per head.

    Args:
        frame: One row per head, label and source, and one with a null label for a head without
            any, as `catalog.queries.head_labels` gives it: the columns `COLUMNS`.

    Returns:
        model, layer, head, name, n_layers, n_heads, scores, category (the one label,
        `2 categories` ..., `5 or more categories`, or `Unclassified`), labels (a sorted tuple of
        distinct ones) and reasons (the rule or person behind each label, as text); the last two
        are empty where there is no label. Rows in the order of the frame.

    Raises:
        UsageError: If a column is missing, or there is no head at all.
    """
    _require(frame)
    # A dictionary, since a groupby that calls Python takes seconds for tens of thousands of heads.
    given: defaultdict[tuple[str, int, int], dict[str, list[str]]] = defaultdict(dict)
    labelled = frame[frame["label"].notna()]
    for model, layer, head, label, source, reason in zip(
        *(labelled[column] for column in (*_HEAD, "label", "source", "reason")), strict=True
    ):
        why = source if pd.isna(reason) else f"{reason} ({source})"
        given[model, layer, head].setdefault(label, []).append(f"{label}: {why}")
    heads = frame.drop_duplicates(_HEAD)[[*_HEAD, "name", "n_layers", "n_heads", "scores"]]
    found = [given.get(place, {}) for place in heads[_HEAD].itertuples(index=False, name=None)]
    summary = pd.DataFrame(
        {
            "category": [_category(labels) for labels in found],
            "labels": [tuple(sorted(labels)) for labels in found],
            "reasons": [
                "; ".join(chain(*(labels[name] for name in sorted(labels)))) for labels in found
            ],
        },
        index=heads.index,
    )
    return pd.concat([heads, summary], axis="columns").reset_index(drop=True)


def category_colors(
    heads: pd.DataFrame, *, taxonomy: str, labels: Iterable[str] = ()
) -> dict[str, str]:
    """Colours of the categories that heads can have, in the order of a legend.

    Args:
        heads: What `categorize` gives.
        taxonomy: Name of the taxonomy.
        labels: Its labels in the whole catalog; those of `heads` are added.

    Returns:
        category -> '#rrggbb': every label of the taxonomy, then the numbers of labels that occur.
        `Unclassified` is not among them: charts of labelled heads know none.
    """
    occurring = set(heads["category"])
    several = {name: color for name, color in palette.MULTIPLE_COLORS.items() if name in occurring}
    used = {label for given in heads["labels"] for label in given}
    return palette.label_colors(taxonomy, {*labels, *used}) | several


def category_counts(
    frame: pd.DataFrame, *, taxonomy: str, labels: Iterable[str] = ()
) -> pd.DataFrame:
    """How many heads of each model are in each category.

    Args:
        frame: As for `categorize`.
        taxonomy: Name of the taxonomy.
        labels: Its labels in the whole catalog.

    Returns:
        model, category, heads, share (of all heads of the model, 0 to 1). Every category has a
        row for every model, in the order of a legend, `Unclassified` last.
    """
    heads = categorize(frame)
    colors = category_colors(heads, taxonomy=taxonomy, labels=labels)
    order = list(colors | {palette.UNCLASSIFIED: palette.UNCLASSIFIED_COLOR})
    rows = [
        (model, category, count, count / len(part))
        for model, part in heads.groupby("model", sort=False)
        for category, count in part["category"].value_counts().reindex(order, fill_value=0).items()
    ]
    return pd.DataFrame(rows, columns=["model", "category", "heads", "share"])


def _require(frame: pd.DataFrame) -> None:
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UsageError(
            f"the frame lacks the column {', '.join(missing)}; "
            "take it from catalog.queries.head_labels"
        )
    if frame.empty:
        raise UsageError("there is no head to draw: the frame has no rows")


def _category(labels: Collection[str]) -> str:
    if len(labels) > 1:
        return palette.multiple(len(labels))
    return next(iter(labels), palette.UNCLASSIFIED)
