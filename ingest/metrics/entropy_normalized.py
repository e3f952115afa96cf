"""How spread out attention is, relative to uniform attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric


@pattern_metric(
    name="entropy_normalized",
    version=1,
    unit="share of the largest possible entropy",
    range=(0.0, 1.0),
    source="Clark et al. 2019, arXiv:1906.04341 (section 3.3), over ln(allowed keys)",
)
def entropy_normalized(
    patterns: Float[Tensor, "batch head query key"], sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of entropy over the entropy of uniform attention."""
    entropy = torch.special.entr(patterns[..., 1:, :]).sum(dim=-1)
    return entropy / sequences.allowed[1:].log()
