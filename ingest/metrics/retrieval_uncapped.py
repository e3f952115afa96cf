"""How often a head attends to the needle's token that the model is about to say."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ingest.metrics._declare import retrieval_metric


@retrieval_metric(
    name="retrieval_uncapped",
    version=1,
    unit="copies per token of the needle",
    range=(0.0, 1.0),
    source=(
        "Wu et al. 2024, arXiv:2404.15574 (as their program counts), with the answer given "
        "instead of generated"
    ),
)
def retrieval_uncapped(
    found: Int[Tensor, "head answer"], said: Bool[Tensor, " answer"]
) -> Float[Tensor, " head"]:
    """Steps at which the token that the model says is attended most in the needle, per token.

    As `retrieval`, but a token of the needle counts each time it is copied: for every answer token
    that equals it.
    """
    return ((found >= 0) & said).double().mean(dim=1)
