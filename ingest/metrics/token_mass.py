"""Attention to a class of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Quotient, class_metric
from ingest.rows import Rows


@class_metric(
    name="token_mass",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Clark et al. 2019, arXiv:1906.04341 (section 3.2, attention to separators); mean over "
        "q >= 1 of the sum of P[q, k] over keys k in the class"
    ),
)
def token_mass(
    mass: Float[Tensor, "batch head query"], share: Float[Tensor, "batch one query"], rows: Rows
) -> Quotient:
    """Mean over queries but the first of the attention to keys of the class."""
    later = rows.since(1)
    return mass[..., later], torch.ones_like(share[..., later])
