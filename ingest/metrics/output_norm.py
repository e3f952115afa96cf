"""How much a head writes."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import output_metric
from ingest.written import HeadOutputs


@output_metric(
    name="output_norm",
    version=1,
    unit="Euclidean norm",
    range=(0.0, None),
    source=(
        "after Kobayashi et al. 2020, arXiv:2004.10102 (|sum of alpha f(x)|, here of the whole "
        "output of one head); |z W_O|, no bias, before any norm after the attention"
    ),
    needs=("z",),
)
def output_norm(outputs: HeadOutputs) -> Float[Tensor, "batch position head"]:
    """Mean norm of what the head writes, over all positions, the first included."""
    # In float64, where the Gram matrix cannot cost the small outputs their digits.
    z = outputs.z.double().movedim(2, 0).flatten(1, 2)
    squares = (z @ outputs.gram * z).sum(dim=-1).clamp_min(0)
    norms: Tensor = torch.sqrt(squares).unflatten(1, outputs.z.shape[:2])
    return norms.movedim(0, 2)
