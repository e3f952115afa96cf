"""Which scores make which labels; applied at every ingest, and again by `heads classify`.

Thresholds are conventions, so they stand here and in the catalog beside the labels they give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from catalog.declarations import Rule, TaxonomySpec
from catalog.errors import UsageError

FUNCTION = TaxonomySpec(
    name="function",
    version=1,
    description="What a head's weights implement: the categories of the relations it maps, "
    "from Elhelo and Geva 2024, arXiv:2412.11965",
    rules=(Rule(metric="relation_score", threshold=0.15),),
)

ROLE = TaxonomySpec(
    name="role",
    version=1,
    description="What a head's attention pattern does most of the time",
    rules=(
        Rule(metric="induction", threshold=0.4, label="induction", probe="random_repeat"),
        Rule(
            metric="duplicate_token", threshold=0.4, label="duplicate-token", probe="random_repeat"
        ),
        Rule(metric="previous_token", threshold=0.4, label="previous-token", probe="plain"),
        Rule(metric="current_token", threshold=0.4, label="current-token", probe="plain"),
        Rule(metric="first_token", threshold=0.7, label="sink", probe="plain"),
        Rule(metric="local_8", threshold=0.8, label="local", probe="plain"),
        Rule(metric="entropy_normalized", threshold=0.9, label="diffuse", probe="plain"),
    ),
)

TAXONOMIES = {spec.name: spec for spec in (FUNCTION, ROLE)}


def with_thresholds(
    names: Sequence[str], everywhere: float | None, by_metric: Mapping[str, float]
) -> list[TaxonomySpec]:
    """The declared taxonomies with other thresholds.

    Args:
        names: Taxonomies to take; all where empty.
        everywhere: Threshold for every rule of them.
        by_metric: Threshold for the rules on a metric, which wins over `everywhere`.

    Raises:
        UsageError: If a taxonomy or metric has no rule.
    """
    unknown = [name for name in names if name not in TAXONOMIES]
    if unknown:
        raise UsageError(
            f"no taxonomy {unknown[0]!r} has rules; those that do: {', '.join(TAXONOMIES)}"
        )
    thresholds = [*by_metric.values(), *([] if everywhere is None else [everywhere])]
    if not all(map(math.isfinite, thresholds)):
        raise UsageError("a threshold must be a number; nan and inf label nothing or everything")
    chosen = [TAXONOMIES[name] for name in names or TAXONOMIES]
    metrics = {rule.metric for spec in chosen for rule in spec.rules}
    for metric in by_metric:
        if metric not in metrics:
            raise UsageError(
                f"no rule is about {metric!r}; there are rules about {', '.join(sorted(metrics))}"
            )
    return [
        replace(
            spec,
            rules=tuple(
                replace(
                    rule,
                    threshold=by_metric.get(
                        rule.metric, rule.threshold if everywhere is None else everywhere
                    ),
                )
                for rule in spec.rules
            ),
        )
        for spec in chosen
    ]
