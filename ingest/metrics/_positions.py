"""Positions that several metrics share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ingest.metrics._declare import Sequences


def offsets(patterns: Float[Tensor, "batch head query key"]) -> Float[Tensor, "query key"]:
    """How far key k lies behind query q: q - k, negative for what is masked."""
    position = torch.arange(patterns.shape[-1], device=patterns.device, dtype=patterns.dtype)
    return position[:, None] - position


def require_period(patterns: Float[Tensor, "batch head query key"], sequences: Sequences) -> int:
    """The period of repeated sequences.

    Raises:
        ValueError: If they are not one block repeated once, after `bos` tokens.
    """
    length = patterns.shape[-1]
    if sequences.period is None or length != sequences.bos + 2 * sequences.period:
        raise ValueError(
            f"expected one block repeated once: bos + 2 * period = {length} positions; "
            f"got bos {sequences.bos}, period {sequences.period}"
        )
    return sequences.period


def attended_most(
    rows: Float[Tensor, "batch head query key"], named: Float[Tensor, "batch head query"]
) -> Float[Tensor, "batch head query"]:
    """1 where the named key, attended by `named`, has more of its row than any other key, else 0.

    A tie is 0: which of equal keys comes first would be decided by their order.
    """
    is_most: Bool[Tensor, "batch head query"] = named == rows.amax(dim=-1)
    # Ties are looked for where they matter only; most heads have few such rows.
    found = rows[is_most]
    is_alone = (found == found.amax(dim=-1, keepdim=True)).sum(dim=-1) == 1
    return is_most.masked_scatter(is_most, is_alone).to(rows.dtype)
