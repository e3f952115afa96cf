"""What the catalog has as a whole: totals, models, what was measured of them, newest runs.

One round trip each, on both databases.
"""

from catalog.catalog import Catalog
from catalog.sql import Result


def totals(catalog: Catalog) -> dict[str, int]:
    """How many models, heads, scores, metrics, labels and stored patterns readers see."""
    [row] = catalog.sql(
        """
        SELECT (SELECT count(*) FROM models) AS models,
               (SELECT count(*) FROM heads) AS heads,
               (SELECT CAST(COALESCE(sum(heads), 0) AS BIGINT) FROM coverage) AS scores,
               (SELECT count(*) FROM metrics) AS metrics,
               (SELECT count(*) FROM labels) AS labels,
               (SELECT count(*) FROM stored_patterns) AS stored_patterns
        """
    )
    return row


def models(catalog: Catalog) -> Result:
    """The models that readers see, newest first.

    Returns:
        model, organisation (what stands before the `/` of a Hub id, else NULL), architecture,
        n_params, n_layers, n_heads, dtype, revision, added_at.
    """
    return catalog.sql(
        """
        SELECT model,
               CASE WHEN model LIKE '%/%' THEN split_part(model, '/', 1) END AS organisation,
               architecture, n_params, n_layers, n_heads, dtype, revision, added_at
        FROM models
        ORDER BY added_at DESC, model
        """
    )


def coverage(catalog: Catalog) -> Result:
    """When each suite was last measured of each model.

    Returns:
        model, suite, measured_at (the end of the newest run that succeeded).
    """
    return catalog.sql(
        """
        SELECT model, suite, max(finished_at) AS measured_at
        FROM runs
        WHERE status = 'succeeded'
        GROUP BY model, suite
        ORDER BY suite, model
        """
    )


def newest_runs(catalog: Catalog, *, limit: int) -> Result:
    """The newest runs of all models, newest first.

    Args:
        catalog: Where to look.
        limit: How many, at least 1.

    Returns:
        run_id, model, suite, probe, status, started_at, seconds, error.
    """
    return catalog.sql(
        """
        SELECT run_id, model, suite, probe, status, started_at, seconds, error
        FROM runs
        ORDER BY run_id DESC
        LIMIT :limit
        """,
        limit=limit,
    )
