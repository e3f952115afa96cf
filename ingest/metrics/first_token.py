"""Attention to the first position, where attention sinks stand."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="first_token",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Xiao et al. 2023, arXiv:2309.17453 (attention sinks); mean over q >= 1 of P[q, 0]",
)
def first_token(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention from each query but the first to position 0."""
    return rows.to_key(0)[..., rows.since(1)]
