"""How often a head's weights promote the token that it reads."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import RankFunction, copying_metric

DEPTHS = (1, 10)
SOURCE = (
    "Elhelo and Geva 2024, arXiv:2412.11965 (section 3, copying), on random ordinary tokens, "
    "embeddings read as they are; k fixed"
)


def hits_within(depth: int, direction: str) -> RankFunction:
    """The same count for plain and for negated ranks, with a description of its own."""

    def hits(ranks: Int[Tensor, "head token"], _k: int) -> Float[Tensor, "head token"]:
        return (ranks < depth).double()

    hits.__doc__ = (
        f"Share of random tokens that are among the {depth} {direction} logits of their own."
    )
    return hits


for _depth in DEPTHS:
    copying_metric(name=f"copying_hits_{_depth}", version=1, source=SOURCE)(
        hits_within(_depth, "largest")
    )
