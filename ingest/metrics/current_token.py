"""Attention to the query's own position."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="current_token",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Clark et al. 2019, arXiv:1906.04341 (section 3.1); mean over q >= 1 of P[q, q]",
)
def current_token(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention from each query but the first to its own position."""
    return rows.behind(0, since=1)
