"""What is published of which revision, and with which versions: what schedules go by."""

from catalog.catalog import Catalog
from catalog.sql import Result


def published_suites(catalog: Catalog) -> Result:
    """Which suites readers see of which revisions of models.

    Returns:
        model, revision, suite.
    """
    return catalog.sql(
        """
        SELECT DISTINCT m.name AS model, m.revision, r.suite
        FROM run_probe p
        JOIN run r ON r.id = p.run_id
        JOIN model m ON m.id = r.model_id
        WHERE p.is_published
        """
    )


def published_versions(catalog: Catalog) -> Result:
    """With which versions of metrics was measured what readers see.

    Returns:
        model, revision, source, suite, dtype, probe, params and versions (JSON texts); one row per
        run and probe, oldest first.
    """
    return catalog.sql(
        """
        SELECT m.name AS model, m.revision, m.source, r.suite, r.dtype, p.name AS probe,
               CAST(r.params AS VARCHAR) AS params, CAST(r.versions AS VARCHAR) AS versions
        FROM run r
        JOIN model m ON m.id = r.model_id
        JOIN run_probe shown ON shown.run_id = r.id AND shown.is_published
        JOIN probe p ON p.id = shown.probe_id
        WHERE m.is_current
        ORDER BY r.id, p.name
        """
    )
