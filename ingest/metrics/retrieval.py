"""How much of a needle a head finds while the model says it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ingest.metrics._declare import retrieval_metric


@retrieval_metric(
    name="retrieval",
    version=1,
    unit="share of the needle's tokens",
    range=(0.0, 1.0),
    source=(
        "Wu et al. 2024, arXiv:2404.15574 (section 2, retrieval score |g & k| / |k|), with the "
        "answer given instead of generated"
    ),
)
def retrieval(
    found: Int[Tensor, "head answer"], said: Bool[Tensor, " answer"]
) -> Float[Tensor, " head"]:
    """Share of a needle's tokens that are attended most while the model says them.

    A token of the needle counts once, however often it is copied. Sequences of whose needle the
    model says nothing do not count.
    """
    copied = torch.where(said, found, -1)
    places = torch.arange(len(said), device=found.device)
    return (copied[..., None] == places).any(dim=1).double().mean(dim=1)
