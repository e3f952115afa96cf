"""The models that a statement names, as bound parameters."""

from collections.abc import Sequence
from typing import Any

from catalog.errors import UsageError


def bound(models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What stands in an IN, and its values; without models nothing is in it."""
    parameters: dict[str, Any] = {f"model_{place}": name for place, name in enumerate(models)}
    return ", ".join(f":{name}" for name in parameters) or "NULL", parameters


def bound_some(models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """As `bound`, of one model at least.

    Raises:
        UsageError: If no model is named.
    """
    if not models:
        raise UsageError("no model is named; `heads models` lists what the catalog has")
    return bound(models)


def in_order(column: str, models: Sequence[str]) -> str:
    """What orders rows as these models are given, one at least; with the parameters of `bound`."""
    cases = " ".join(f"WHEN :model_{number} THEN {number}" for number in range(len(models)))
    return f"CASE {column} {cases} END"
