"""What heads are called: taxonomies, labels, and the rules and scores behind them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.named import bound, bound_some, in_order
from catalog.sql import Result

USUAL_TAXONOMY = "function"


def taxonomies(catalog: Catalog, *models: str) -> Result:
    """The taxonomies in use anywhere in the catalog, those that label these models first.

    Args:
        catalog: Where to look.
        models: Names of models; without any, no taxonomy labels them.

    Returns:
        taxonomy; labels, the number of distinct labels given in the whole catalog; heads, the
        number of heads of these models with at least one of them, 0 where there is none.
    """
    names, parameters = bound(models)
    return catalog.sql(
        f"""
        SELECT taxonomy, COUNT(DISTINCT label) AS labels,
               COUNT(DISTINCT CASE WHEN model IN ({names}) THEN place END) AS heads
        FROM (
            SELECT taxonomy, label, model, layer || '.' || head || '.' || model AS place
            FROM labels
        ) given
        GROUP BY taxonomy
        ORDER BY heads DESC, taxonomy
        """,  # noqa: S608 - only the names of parameters are put in
        **parameters,
    )


def require_taxonomy(catalog: Catalog, name: str) -> None:
    """See that there is a taxonomy of this name.

    Raises:
        UsageError: If there is none; it names those that there are.
    """
    known = [row["taxonomy"] for row in catalog.sql("SELECT DISTINCT taxonomy FROM taxonomies")]
    if name not in known:
        has = f"it has {', '.join(sorted(known))}" if known else "nothing is labelled yet"
        raise UsageError(f"the catalog has no taxonomy {name!r}; {has}")


def usual_taxonomy(heads: Mapping[str, int]) -> str:
    """The taxonomy that is meant where nobody names one.

    Args:
        heads: How many heads each taxonomy labels, in the order of `taxonomies`.

    Returns:
        `function` where it labels any, or where there is no other; else the first.
    """
    return USUAL_TAXONOMY if heads.get(USUAL_TAXONOMY) or not heads else next(iter(heads))


def taxonomy_labels(catalog: Catalog, taxonomy: str) -> list[str]:
    """The labels of a taxonomy that any model in the catalog has, in order of code points."""
    given = catalog.sql(
        "SELECT DISTINCT label FROM labels WHERE taxonomy = :taxonomy", taxonomy=taxonomy
    )
    return sorted(row["label"] for row in given)


def label_counts(catalog: Catalog, model: str) -> Result:
    """How many heads of a model have each label: taxonomy, label, heads."""
    return catalog.sql(
        "SELECT taxonomy, label, count(*) AS heads FROM "
        "(SELECT DISTINCT layer, head, taxonomy, label FROM labels WHERE model = :model) AS one "
        "GROUP BY taxonomy, label ORDER BY taxonomy, heads DESC, label",
        model=model,
    )


def head_labels(catalog: Catalog, models: Sequence[str], taxonomy: str) -> Result:
    """Every head of the models with what one taxonomy says of it.

    Args:
        catalog: Where to look.
        models: Names of models, in the order in which they are wanted; unknown ones add no rows.
        taxonomy: Name of a taxonomy; under an unknown one no head has a label.

    Returns:
        model, layer, head, name ('L5H3'), n_layers, n_heads, label, source, confidence, reason,
        scores. One row per head, label and source of the label; label to reason are NULL in the
        one row of a head without a label. scores are the head's three largest of the metrics that
        the taxonomy's rules are about, as text, NULL where there is no rule or score. In order of
        model as given, layer, head.

    Raises:
        UsageError: If no model is named.
    """
    names, parameters = bound_some(models)
    return catalog.sql(
        f"""
        WITH ranked AS (
            SELECT s.model, s.layer, s.head, s.metric, s.probe, s.value,
                   row_number() OVER (
                       PARTITION BY s.model, s.layer, s.head
                       ORDER BY s.value DESC, s.metric, s.probe
                   ) AS place
            FROM scores s
            JOIN metrics k ON k.metric = s.metric
            WHERE s.model IN ({names}) AND s.value IS NOT NULL AND k.family IN (
                SELECT k.family FROM metrics k
                JOIN taxonomies t
                  ON CAST(t.rules AS VARCHAR) LIKE '%"metric": "' || k.family || '"%'
                WHERE t.taxonomy = :taxonomy
            )
        ), best AS (
            SELECT model, layer, head, string_agg(
                       metric || ' ' || CAST(CAST(value AS DECIMAL(12, 3)) AS VARCHAR)
                       || ' (' || probe || ')', ', ' ORDER BY place
                   ) AS scores
            FROM ranked
            WHERE place <= 3
            GROUP BY model, layer, head
        )
        SELECT h.model, h.layer, h.head, h.name, m.n_layers, m.n_heads,
               l.label, l.source, l.confidence, l.reason, b.scores
        FROM heads h
        LEFT JOIN best b ON b.model = h.model AND b.layer = h.layer AND b.head = h.head
        JOIN models m ON m.model = h.model
        LEFT JOIN labels l ON l.model = h.model AND l.layer = h.layer AND l.head = h.head
                          AND l.taxonomy = :taxonomy AND l.model IN ({names})
        WHERE h.model IN ({names})
        ORDER BY {in_order("h.model", models)}, h.layer, h.head, l.label, l.source
        """,  # noqa: S608 - only the names of parameters are put in
        taxonomy=taxonomy,
        **parameters,
    )


def rules(catalog: Catalog, taxonomy: str) -> list[dict[str, Any]]:
    """The declared rules of a taxonomy, none where people alone give its labels.

    Returns:
        Per rule metric, threshold, label (None: the category of the relation), probe (None: any).
    """
    rows = catalog.sql("SELECT rules FROM taxonomies WHERE taxonomy = :taxonomy", taxonomy=taxonomy)
    declared = next((row["rules"] for row in rows), None)
    if isinstance(declared, str):
        declared = json.loads(declared)
    return list(declared["rules"]) if declared else []


def rule_scores(catalog: Catalog, models: Sequence[str], metrics: Sequence[str]) -> Result:
    """The scores that rules on these metrics decide by.

    Args:
        catalog: Where to look.
        models: Names of models.
        metrics: Names or families of metrics.

    Returns:
        model, layer, head, metric, family, probe, value (never NULL), category (of the relation
        that the metric is about, else NULL).
    """
    names, parameters = bound(models)
    wanted = {f"metric_{place}": name for place, name in enumerate(metrics)}
    chosen = ", ".join(f":{name}" for name in wanted)
    return catalog.sql(
        f"""
        SELECT s.model, s.layer, s.head, s.metric, k.family, s.probe, s.value, r.category
        FROM scores s
        JOIN metrics k ON k.metric = s.metric
        LEFT JOIN (
            SELECT probe, relation, min(category) AS category FROM relations
            GROUP BY probe, relation
        ) r ON r.probe = s.probe AND r.relation = k.parameter
        WHERE s.model IN ({names}) AND s.value IS NOT NULL
          AND (k.family IN ({chosen}) OR s.metric IN ({chosen}))
        """,  # noqa: S608 - only the names of parameters are put in
        **parameters,
        **wanted,
    )
