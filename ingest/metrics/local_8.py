"""Attention within a window of eight positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric

WINDOW = 8


@pattern_metric(
    name="local_8",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Beltagy et al. 2020, arXiv:2004.05150 (local windows); "
        "mean over q >= 8 of the mass on 0 <= q-k < 8"
    ),
)
def local_8(
    patterns: Float[Tensor, "batch head query key"], _sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Mean attention mass on the last eight positions, the query's own included."""
    behind = [patterns.diagonal(offset=-d, dim1=-2, dim2=-1) for d in range(WINDOW)]
    return torch.stack([near[..., WINDOW - d :] for d, near in enumerate(behind)]).sum(dim=0)
