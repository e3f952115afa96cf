"""One category for every head: its label, how many it has, or `Unclassified`."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

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
    places = zip(*(heads[column].tolist() for column in _HEAD), strict=True)
    unlabelled: dict[str, list[str]] = {}
    found = [given.get(place, unlabelled) for place in places]
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


def relabel(
    frame: pd.DataFrame, scores: pd.DataFrame, rules: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """What a taxonomy would say if its rules were these; nothing is written anywhere.

    Args:
        frame: As `catalog.queries.head_labels` gives it.
        scores: As `catalog.queries.rule_scores` gives it, of the same models.
        rules: As `catalog.queries.rules` gives them, with any thresholds.

    Returns:
        As `frame`: labels by rule are those of `rules`, all other labels are as they were.
    """
    _require(frame)
    heads = frame.drop_duplicates(_HEAD)[[*_HEAD, "name", "n_layers", "n_heads", "scores"]]
    found = pd.concat([_reached(scores, rule) for rule in rules])
    reasons = found.groupby([*_HEAD, "label"], sort=False)["reason"].agg(", ".join)
    by_rule = reasons.reset_index().assign(source="rule", confidence=math.nan)
    by_others = frame[frame["label"].notna() & (frame["source"] != "rule")]
    given = [*_HEAD, "label", "source", "confidence", "reason"]
    labels = pd.concat(
        [one[given] for one in (by_rule, by_others) if not one.empty] or [by_rule[given]]
    )
    return heads.merge(labels, how="left", on=_HEAD)[list(frame.columns)]


def _reached(scores: pd.DataFrame, rule: Mapping[str, Any]) -> pd.DataFrame:
    """Head, label and reason of the scores that reach a rule's threshold, largest first."""
    of_metric = (scores["family"] == rule["metric"]) | (scores["metric"] == rule["metric"])
    reached = of_metric & (scores["value"] >= rule["threshold"])
    if rule["probe"] is not None:
        reached &= scores["probe"] == rule["probe"]
    found = scores[reached].sort_values("value", ascending=False)
    labels = found["category"] if rule["label"] is None else rule["label"]
    reasons = [
        f"{metric} {value:.3g} >= {rule['threshold']:g}"
        for metric, value in zip(found["metric"], found["value"], strict=True)
    ]
    return found[_HEAD].assign(label=labels, reason=reasons).dropna(subset="label")


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
