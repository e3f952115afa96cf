"""Relation scores that need no k: how high the targets stand."""

from jaxtyping import Float, Int
from torch import Tensor

from ingest.metrics._declare import RankFunction, relation_metric

DEPTH = 25


def _mrr(which: str) -> RankFunction:
    def mrr(ranks: Int[Tensor, "head pair"], _k: int) -> Float[Tensor, "head pair"]:
        return (ranks < DEPTH) / (ranks + 1).double()

    mrr.__doc__ = (
        f"Mean of 1 / rank of a relation's targets among the {which} logits, counted from 1; "
        f"0 beyond {DEPTH}."
    )
    return mrr


for _name, _which in (("relation_mrr", "largest"), ("relation_suppression_mrr", "smallest")):
    relation_metric(
        name=f"{_name}_{DEPTH}",
        version=1,
        source="Voorhees 1999, TREC-8 (mean reciprocal rank), of the ranks of Elhelo and Geva 2024",
        of_negated=_which == "smallest",
    )(_mrr(_which))
