"""Relation scores at fixed k, so that k can be changed in SQL."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import RankFunction, relation_metric

DEPTHS = (1, 5, 10, 25)


def _hits(depth: int, which: str) -> RankFunction:
    def hits(ranks: Int[Tensor, "head pair"], _k: int) -> Float[Tensor, "head pair"]:
        return (ranks < depth).double()

    hits.__doc__ = f"Share of a relation's pairs whose target is among the {depth} {which} logits."
    return hits


for _depth in DEPTHS:
    for _name, _which in (("relation_hits", "largest"), ("relation_suppression_hits", "smallest")):
        relation_metric(
            name=f"{_name}_{_depth}",
            version=1,
            source="Elhelo and Geva 2024, arXiv:2412.11965 (section 3), k fixed",
            of_negated=_which == "smallest",
        )(_hits(_depth, _which))
