"""How well a head's output, in a run, gives the targets of a relation's sources."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import dynamic_metric


@dynamic_metric(name="dynamic_score", version=1)
def dynamic_score(ranks: Int[Tensor, "head pair"], k: int) -> Float[Tensor, "head pair"]:
    """Share of a relation's prompts whose target is among the k largest logits of the output."""
    return (ranks < k).double()


@dynamic_metric(name="dynamic_score_without_context", version=1, with_context=False)
def dynamic_score_without_context(
    ranks: Int[Tensor, "head pair"], k: int
) -> Float[Tensor, "head pair"]:
    """As `dynamic_score`, the head's attention at the last position forced onto the source."""
    return (ranks < k).double()
