"""Attention to what followed the query's token the last time."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._positions import require_period


@pattern_metric(
    name="induction",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Olsson et al. 2022, arXiv:2209.11895 (prefix matching; second copy)",
    needs_period=True,
)
def induction(
    patterns: Float[Tensor, "batch head query key"], sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Mean attention from the second copy of a block to the token after its earlier self."""
    period = require_period(patterns, sequences)
    return patterns.diagonal(offset=1 - period, dim1=-2, dim2=-1)[..., -period:]
