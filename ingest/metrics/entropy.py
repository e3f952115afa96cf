"""How spread out attention is."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="entropy",
    version=1,
    unit="nat",
    range=(0.0, None),
    source="Clark et al. 2019, arXiv:1906.04341 (section 3.3); -sum P ln P",
)
def entropy(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean entropy of each query's attention, the first (0) included."""
    return rows.entropy
