"""Attention within a window of eight positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows

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
def local_8(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention mass on the last eight positions, the query's own included."""
    near = [rows.behind(distance, since=WINDOW) for distance in range(WINDOW)]
    return torch.stack(near).sum(dim=0)
