"""How well a head's weights map a relation's sources to its targets."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import relation_metric


@relation_metric(
    name="relation_score",
    version=1,
    source="Elhelo and Geva 2024, arXiv:2412.11965 (section 3)",
)
def relation_score(ranks: Int[Tensor, "head pair"], k: int) -> Float[Tensor, "head pair"]:
    """Share of a relation's pairs whose target is among the head's k largest logits."""
    return (ranks < k).double()
