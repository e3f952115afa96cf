"""How spread out attention is, relative to uniform attention."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="entropy_normalized",
    version=1,
    unit="share of the largest possible entropy",
    range=(0.0, 1.0),
    source="Clark et al. 2019, arXiv:1906.04341 (section 3.3), over ln(allowed keys)",
)
def entropy_normalized(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of entropy over the entropy of uniform attention."""
    later = rows.since(1)
    return rows.entropy[..., later] / rows.allowed[later].double().log()
