"""Positions that several metrics share."""

import torch
from jaxtyping import Float
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
