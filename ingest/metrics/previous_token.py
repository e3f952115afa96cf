"""Attention to the token just before."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="previous_token",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Voita et al. 2019, arXiv:1905.09418 (positional heads); mean over q >= 1 of P[q, q-1]",
)
def previous_token(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention from each query to the position before it."""
    return rows.behind(1)
