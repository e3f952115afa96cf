"""How well a head's output, in a run, suppresses the targets of a relation's sources."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import dynamic_metric


@dynamic_metric(name="dynamic_suppression", version=1, of_negated=True)
def dynamic_suppression(ranks: Int[Tensor, "head pair"], k: int) -> Float[Tensor, "head pair"]:
    """Share of a relation's prompts whose target is among the k smallest logits of the output."""
    return (ranks < k).double()


@dynamic_metric(
    name="dynamic_suppression_without_context", version=1, of_negated=True, with_context=False
)
def dynamic_suppression_without_context(
    ranks: Int[Tensor, "head pair"], k: int
) -> Float[Tensor, "head pair"]:
    """As `dynamic_suppression`, attention at the last position forced onto the source."""
    return (ranks < k).double()
