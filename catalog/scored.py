"""Scores as pages draw them: per head, by relative depth, and one model's against another's.

Each in one round trip that both databases understand.
"""

from collections.abc import Sequence

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.named import bound_some, in_order
from catalog.sql import Result

DEPTH_BINS = 10
ALL_MODELS = "all models"


def choices(catalog: Catalog, *, models: Sequence[str] | None = None) -> Result:
    """The metrics that have scores, and on which probes.

    Args:
        catalog: Where to look.
        models: Only what is measured of all of them; what is of any model where None.

    Returns:
        family, parameter, metric, probe, unit, lower, upper, description, source, models (how many
        are measured); by family, parameter and probe.
    """
    names, parameters = bound_some(models) if models is not None else ("", {})
    of_all = f"WHERE model IN ({names})" if names else ""
    return catalog.sql(
        f"""
        SELECT k.family, k.parameter, k.metric, s.probe, k.unit, k.lower, k.upper, k.description,
               k.source, s.models
        FROM (
            SELECT metric, probe, count(DISTINCT model) AS models
            FROM coverage
            {of_all}
            GROUP BY metric, probe
            HAVING count(DISTINCT model) >= {len(parameters):d}
        ) s
        JOIN metrics k ON k.metric = s.metric
        ORDER BY k.family, k.parameter, s.probe
        """,  # noqa: S608 - only fixed words, a number and names of parameters are put in
        **parameters,
    )


def models_with(catalog: Catalog, metric: str, probe: str) -> list[str]:
    """The models that a metric is measured of, on a probe; in order of code points."""
    found = catalog.sql(
        "SELECT DISTINCT model FROM coverage WHERE metric = :metric AND probe = :probe",
        metric=metric,
        probe=probe,
    )
    return sorted(row["model"] for row in found)


def values(
    catalog: Catalog,
    models: Sequence[str],
    metric: str,
    probe: str,
    *,
    against: tuple[str, str] | None = None,
) -> Result:
    """Every head of the models with its score.

    Args:
        catalog: Where to look.
        models: Names of models, in the order in which they are wanted; unknown ones add no rows.
        metric: Name of a metric.
        probe: Name of a probe.
        against: Another metric and its probe.

    Returns:
        model, layer, head, name ('L5H3'), depth (0 to 1), n_layers, n_heads, value (NULL:
        undefined, or not measured), and against where one is named; in order of model as given,
        layer, head.

    Raises:
        UsageError: If no model is named.
    """
    names, parameters = bound_some(models)
    shown = joined = ""
    if against:
        shown = ", a.value AS against"
        joined = f"""
        LEFT JOIN scores a ON a.model = h.model AND a.layer = h.layer AND a.head = h.head
            AND a.metric = :against AND a.probe = :against_probe AND a.model IN ({names})"""
        parameters |= {"against": against[0], "against_probe": against[1]}
    return catalog.sql(
        f"""
        SELECT h.model, h.layer, h.head, h.name, h.depth, m.n_layers, m.n_heads, s.value{shown}
        FROM heads h
        JOIN models m ON m.model = h.model
        LEFT JOIN scores s ON s.model = h.model AND s.layer = h.layer AND s.head = h.head
            AND s.metric = :metric AND s.probe = :probe AND s.model IN ({names}){joined}
        WHERE h.model IN ({names})
        ORDER BY {in_order("h.model", models)}, h.layer, h.head
        """,  # noqa: S608 - only fixed words and names of parameters are put in
        metric=metric,
        probe=probe,
        **parameters,
    )


def depth_profile(
    catalog: Catalog,
    metric: str,
    probe: str,
    *,
    models: Sequence[str] | None = None,
    bins: int = DEPTH_BINS,
) -> Result:
    """A metric by relative depth.

    Args:
        catalog: Where to look.
        metric: Name of a metric.
        probe: Name of a probe.
        models: Names of models, in the order in which they are wanted; where None, all models
            that have the metric, together, as the model `ALL_MODELS`.
        bins: Equal parts of the depth from 0 to 1, from 1.

    Returns:
        model, bin (from 0), depth (of the bin's middle), mean, low and high (quartiles), heads
        (how many have a score); undefined scores are left out, as are models of one layer, which
        have no depth. In order of model as given, and bin.

    Raises:
        UsageError: If no model is named, or there is no bin.
    """
    if bins < 1:
        raise UsageError(f"{bins} bins of depth cannot be made; expected 1 or more")
    names, parameters = bound_some(models) if models is not None else ("", {"model": ALL_MODELS})
    group = "s.model" if models is not None else "CAST(:model AS VARCHAR)"
    chosen = f"AND s.model IN ({names})" if models is not None else ""
    return catalog.sql(
        f"""
        SELECT model, bin, (bin + 0.5) / {bins:d} AS depth, avg(value) AS mean,
               percentile_cont(0.25) WITHIN GROUP (ORDER BY value) AS low,
               percentile_cont(0.75) WITHIN GROUP (ORDER BY value) AS high, count(*) AS heads
        FROM (
            SELECT {group} AS model, s.value,
                   least(CAST(floor(h.depth * {bins:d}) AS INTEGER), {bins - 1:d}) AS bin
            FROM scores s
            JOIN heads h ON h.model = s.model AND h.layer = s.layer AND h.head = s.head
            WHERE s.metric = :metric AND s.probe = :probe AND s.value IS NOT NULL
              AND h.depth IS NOT NULL {chosen}
        ) placed
        GROUP BY model, bin
        ORDER BY {in_order("model", models) + ", " if models else ""}bin
        """,  # noqa: S608 - only fixed words, numbers and names of parameters are put in
        metric=metric,
        probe=probe,
        **parameters,
    )


def differences(catalog: Catalog, first: str, second: str, metric: str, probe: str) -> Result:
    """What a metric is of each head in two models of one layout.

    Returns:
        model (`SECOND - FIRST`), layer, head, name, n_layers, n_heads, before (in the first), after
        (in the second), value (after less before; NULL where one is); by layer and head.

    Raises:
        UsageError: If a model is not there, or they differ in layers or heads.
    """
    found = catalog.sql(
        """
        SELECT b.model || ' - ' || a.model AS model, h.layer, h.head, h.name, a.n_layers,
               a.n_heads, s.value AS before, t.value AS after, t.value - s.value AS value
        FROM models a
        JOIN models b ON b.n_layers = a.n_layers AND b.n_heads = a.n_heads
        JOIN heads h ON h.model = a.model
        LEFT JOIN scores s ON s.model = a.model AND s.layer = h.layer AND s.head = h.head
            AND s.metric = :metric AND s.probe = :probe
        LEFT JOIN scores t ON t.model = b.model AND t.layer = h.layer AND t.head = h.head
            AND t.metric = :metric AND t.probe = :probe
        WHERE a.model = :first AND b.model = :second
        ORDER BY h.layer, h.head
        """,
        first=first,
        second=second,
        metric=metric,
        probe=probe,
    )
    if not found:
        raise UsageError(
            f"{first} and {second} are not two models of the catalog with as many layers, and as "
            "many heads; `heads models` shows both"
        )
    return found


def label_changes(catalog: Catalog, first: str, second: str) -> Result:
    """The labels that heads have in one of two models alone.

    Returns:
        change (`gained`: in the second alone, `lost`: in the first alone), layer, head, name,
        taxonomy, label; in that order. Whoever gave a label.
    """
    return catalog.sql(
        """
        SELECT CASE min(model) WHEN :second THEN 'gained' ELSE 'lost' END AS change, layer, head,
               'L' || layer || 'H' || head AS name, taxonomy, label
        FROM (
            SELECT DISTINCT model, layer, head, taxonomy, label
            FROM labels
            WHERE model IN (:first, :second)
        ) given
        GROUP BY layer, head, taxonomy, label
        HAVING count(*) = 1
        ORDER BY change, layer, head, taxonomy, label
        """,
        first=first,
        second=second,
    )
