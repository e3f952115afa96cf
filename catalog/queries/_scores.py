"""What was measured of heads: metrics, probes, and the heads that have most of one."""

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.queries._models import require_model, suggestion
from catalog.sql import Result

MAX_ROWS = 1_000_000
"""What may be asked for at once, where a number of rows is asked for."""

USUAL_PROBES = ("shipped", "plain", "random_repeat")
"""What is meant where nobody says on which probe, in this order."""


def metrics(catalog: Catalog) -> Result:
    """The metrics that have been measured, by suite and name."""
    return catalog.sql("SELECT * FROM metrics ORDER BY suite, metric")


def probes_of(catalog: Catalog, metric: str) -> list[str]:
    """The probes on which a metric is published; first the one that is meant by default.

    Raises:
        UsageError: If the metric is not in the catalog, or is no score; names near ones.
    """
    rows = catalog.sql("SELECT DISTINCT probe FROM coverage WHERE metric = :metric", metric=metric)
    found = [row["probe"] for row in rows]
    if not found:
        is_vector = {row["metric"]: row["is_vector"] for row in metrics(catalog)}
        if is_vector.get(metric):
            raise UsageError(
                f"{metric} is a list of numbers for every head, and no score; "
                "the view `vectors` has it"
            )
        known = [name for name, listed in is_vector.items() if not listed]
        raise UsageError(
            f"the catalog has no scores of {metric!r}{suggestion(metric, known)}; "
            "`heads metrics` lists what it has"
        )
    usual = [probe for probe in USUAL_PROBES if probe in found]
    return usual + sorted(set(found) - set(usual))


def top(
    catalog: Catalog, metric: str, *, probe: str, model: str | None, limit: int, lowest: bool
) -> Result:
    """Heads by a metric: model, layer, head, name, metric, probe, value; undefined ones left out.

    Args:
        catalog: The catalog.
        metric: As the view `metrics` names it.
        probe: On which probe.
        model: Only heads of this model; all where None.
        limit: How many, 1 to `MAX_ROWS`.
        lowest: The smallest first.

    Raises:
        UsageError: If the limit is out of its range.
    """
    require_limit(limit)
    of_model = "AND s.model = :model" if model else ""
    parameters = {"metric": metric, "probe": probe, "limit": limit}
    return catalog.sql(
        f"""
        SELECT s.model, s.layer, s.head, 'L' || s.layer || 'H' || s.head AS name, s.metric,
               s.probe, s.value
        FROM scores s
        WHERE s.metric = :metric AND s.probe = :probe AND s.value IS NOT NULL {of_model}
        ORDER BY s.value {"ASC" if lowest else "DESC"}, s.model, s.layer, s.head
        LIMIT :limit
        """,  # noqa: S608 - only fixed words are put in
        **parameters,
        **({"model": model} if model else {}),
    )


def head(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """Everything about one head: what (metric or taxonomy), on (probe or source), value, label."""
    return catalog.sql(
        """
        SELECT h.name, s.metric AS what, s.probe AS "on", s.value, NULL AS label
        FROM heads h
        JOIN scores s ON s.model = h.model AND s.layer = h.layer AND s.head = h.head
        WHERE h.model = :model AND h.layer = :layer AND h.head = :head
        UNION ALL
        SELECT h.name, l.taxonomy, l.source, NULL, l.label
        FROM heads h
        JOIN labels l ON l.model = h.model AND l.layer = h.layer AND l.head = h.head
        WHERE h.model = :model AND h.layer = :layer AND h.head = :head
        ORDER BY 5, 2, 3
        """,
        model=model,
        layer=layer,
        head=head,
    )


def relation_correlations(catalog: Catalog, model: str) -> Result:
    """How far the relation scores of a model's weights hold in a run, relation by relation.

    Returns:
        relation, probe (the relation set), template (`all`: over templates x heads), context
        (`with`, or `without` where attention was forced onto the source), direction (`promoted`
        or `suppressed`), pearson (-1 to 1; NULL where either score is the same for all heads),
        points (how many pairs of scores).

    Raises:
        UsageError: If there is no such model, or its static or dynamic scores are not measured.
    """
    require_model(catalog, model)
    found = catalog.sql(
        """
        SELECT relation, probe, template, context, direction, pearson, points
        FROM relation_correlations
        WHERE model = :model
        ORDER BY probe, relation, CASE template WHEN 'all' THEN 0 ELSE 1 END, template, context,
                 direction
        """,
        model=model,
    )
    if not found:
        raise UsageError(
            f"{model} has nothing in the view `relation_correlations`; it needs scores of one "
            "relation set in both: `heads ingest MODEL --suite relations --suite dynamic`"
        )
    return found


def require_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_ROWS:
        raise UsageError(f"{limit} rows cannot be asked for; expected 1 to {MAX_ROWS:,}")
