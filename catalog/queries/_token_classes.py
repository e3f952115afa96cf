"""Attention of layers to classes of tokens."""

from collections.abc import Sequence
from typing import Any, NoReturn

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.named import bound_some, in_order
from catalog.queries._models import require_model
from catalog.sql import Result


def token_choices(catalog: Catalog) -> Result:
    """What of attention to classes of tokens is there to be seen.

    Returns:
        model, probe, class: all that `token_totals` can be asked for.
    """
    return catalog.sql(
        """
        SELECT DISTINCT c.model, c.probe, k.parameter AS class
        FROM metrics k
        JOIN coverage c ON c.metric = k.metric
        WHERE k.family = 'token_mass'
        ORDER BY c.model, c.probe, k.parameter
        """
    )


def token_totals(
    catalog: Catalog,
    models: Sequence[str],
    probe: str,
    *,
    layers: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
) -> Result:
    """Attention of whole layers to classes of tokens (`token_mass`).

    Args:
        catalog: Where to look.
        models: Names of models, in the order in which they are wanted.
        probe: Name of a probe.
        layers: Only these; all where None.
        classes: Only these; all where None.

    Returns:
        model, probe, layer, class, total (the sum over the layer's heads, 0 to n_heads), mean (the
        same over their number, 0 to 1), heads, n_heads, n_layers; in order of model as given,
        layer, class. Heads without a score are in neither, and not in heads, which is how many
        have one; total and mean are NULL where none has.

    Raises:
        UsageError: If no model is named, or nothing is published of one of them; it says what is.
    """
    names, parameters = bound_some(models)
    only = {"s.layer": ("layer", layers), "k.parameter": ("class", classes)}
    conditions, bound = "", dict[str, Any]()
    for column, (name, wanted) in only.items():
        if wanted is not None:
            values = {f"{name}_{number}": value for number, value in enumerate(wanted)}
            conditions += f" AND {column} IN ({', '.join(f':{key}' for key in values) or 'NULL'})"
            bound |= values
    found = catalog.sql(
        f"""
        SELECT s.model, s.probe, s.layer, k.parameter AS class, SUM(s.value) AS total,
               AVG(s.value) AS mean, COUNT(s.value) AS heads, m.n_heads, m.n_layers
        FROM metrics k
        JOIN scores s ON s.metric = k.metric
        JOIN models m ON m.model = s.model
        WHERE k.family = 'token_mass' AND s.probe = :probe AND s.model IN ({names}) {conditions}
        GROUP BY s.model, s.probe, s.layer, k.parameter, m.n_heads, m.n_layers
        ORDER BY {in_order("s.model", models)}, s.layer, k.parameter
        """,  # noqa: S608 - only the names of parameters are put in
        probe=probe,
        **parameters,
        **bound,
    )
    missing = set(models) - {row["model"] for row in found}
    if missing:
        _explain_no_totals(catalog, [name for name in models if name in missing], probe)
    return found


def _explain_no_totals(catalog: Catalog, models: Sequence[str], probe: str) -> NoReturn:
    """Say why there are no totals of the first of these models.

    Raises:
        UsageError: Always.
    """
    name = models[0]
    require_model(catalog, name)
    choices = [row for row in token_choices(catalog) if row["model"] == name]
    probes = sorted({row["probe"] for row in choices})
    if not probes:
        raise UsageError(
            f"attention of {name} to classes of tokens is not measured yet; "
            "`heads ingest MODEL --suite patterns` does it"
        )
    if probe not in probes:
        raise UsageError(
            f"attention of {name} to classes of tokens is not measured on {probe!r}, "
            f"but on {', '.join(probes)}"
        )
    classes = sorted({row["class"] for row in choices if row["probe"] == probe})
    n_layers = require_model(catalog, name)["n_layers"]
    raise UsageError(
        f"{name} has nothing of these layers and classes on {probe}; it has layers 0 to "
        f"{n_layers - 1} and the classes {', '.join(classes)}"
    )
