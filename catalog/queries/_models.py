"""Which models there are, and whether one is there that somebody names."""

import difflib
from collections.abc import Sequence
from typing import Any

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.sql import Result


def models(catalog: Catalog) -> Result:
    """The models that readers see, by name.

    Returns:
        The columns of the view `models`, and `labelled_heads`: how many of the model's heads have
        a label of any taxonomy.
    """
    return catalog.sql(
        """
        SELECT m.*, COALESCE(l.labelled_heads, 0) AS labelled_heads
        FROM models m
        LEFT JOIN (
            SELECT model, COUNT(*) AS labelled_heads
            FROM (SELECT DISTINCT model, layer, head FROM labels) labelled
            GROUP BY model
        ) l ON l.model = m.model
        ORDER BY m.model
        """
    )


def model(catalog: Catalog, name: str) -> Result:
    """One model's row of the view `models`."""
    return catalog.sql("SELECT * FROM models WHERE model = :model", model=name)


def require_model(catalog: Catalog, name: str) -> dict[str, Any]:
    """The row of `models` for the model of this name.

    Raises:
        UsageError: If there is none; it names those with a similar name.
    """
    rows = {row["model"]: row for row in models(catalog)}
    if name not in rows:
        raise UsageError(
            f"the catalog has no model {name!r}{suggestion(name, list(rows))}; "
            "`heads models` lists what it has"
        )
    return rows[name]


def require_head(catalog: Catalog, model: str, layer: int, head: int) -> None:
    """See that a model has such a head.

    Raises:
        UsageError: If there is no such model or no such head; it says which there are.
    """
    facts = require_model(catalog, model)
    if not (0 <= layer < facts["n_layers"] and 0 <= head < facts["n_heads"]):
        raise UsageError(
            f"{model} has {facts['n_layers']} layers of {facts['n_heads']} heads, "
            f"counted from 0, and no L{layer}H{head}"
        )


def runs(catalog: Catalog, model: str) -> Result:
    """A model's runs, newest first: run_id, suite, probe, status, started_at, seconds, error."""
    return catalog.sql(
        "SELECT run_id, suite, probe, status, started_at, seconds, error FROM runs "
        "WHERE model = :model ORDER BY run_id DESC",
        model=model,
    )


def suggestion(name: str, known: Sequence[str]) -> str:
    # Hub ids begin with an owner, which people leave out: compare with and without it.
    spelled = {form.lower(): model for model in known for form in (model.split("/")[-1], model)}
    near = difflib.get_close_matches(name.lower(), spelled)
    return (
        f" (did you mean {' or '.join(dict.fromkeys(spelled[form] for form in near))}?)"
        if near
        else ""
    )
