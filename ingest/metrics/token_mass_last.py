"""The last query's attention to a class of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Quotient, class_metric
from ingest.rows import Rows


@class_metric(
    name="token_mass_last",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Clark et al. 2019, arXiv:1906.04341 (section 3.2), of the query that predicts what comes "
        "next; sum of P[n-1, k] over keys k in the class"
    ),
)
def token_mass_last(
    mass: Float[Tensor, "batch head query"], share: Float[Tensor, "batch one query"], rows: Rows
) -> Quotient:
    """Mean over sequences of the last query's attention to keys of the class."""
    last = rows.since(rows.length - 1)
    return mass[..., last], torch.ones_like(share[..., last])
