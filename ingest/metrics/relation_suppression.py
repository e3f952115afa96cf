"""How well a head's weights suppress a relation's targets."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import relation_metric


@relation_metric(
    name="relation_suppression",
    version=1,
    source="Elhelo and Geva 2024, arXiv:2412.11965 (section 3, suppression)",
    of_negated=True,
)
def relation_suppression(ranks: Int[Tensor, "head pair"], k: int) -> Float[Tensor, "head pair"]:
    """Share of a relation's pairs whose target is among the head's k smallest logits."""
    return (ranks < k).double()
