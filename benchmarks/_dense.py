"""Relation scores by dense products, as published: the reference that screening is measured by.

Elhelo and Geva 2024, arXiv:2412.11965 (section 3): for every relation and head, W_V W_O is formed
whole, the sources' embeddings go through it and the unembedding, and topk of the logits, and of
the negated ones, is searched for the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ingest.ranks import Pairs


@dataclass(frozen=True, kw_only=True)
class DenseHits:
    """How many of a relation's targets are among the k largest logits, or negated ones.

    `flops` are those of the products.
    """

    plain: Int[Tensor, "relation head"]
    negated: Int[Tensor, "relation head"]
    flops: int


def dense_hits(
    sources: Float[Tensor, "source d_model"],
    values: Float[Tensor, "kv_head d_model d_head"],
    outputs: Float[Tensor, "head d_head d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    relations: Sequence[tuple[Pairs, int]],
) -> DenseHits:
    """Count the hits of every head of one layer.

    Args:
        sources: What the heads read, one row per distinct source token.
        values: W_V per KV head.
        outputs: W_O per query head.
        unembedding: The vocabulary's directions.
        relations: Pairs, and the k that makes a hit, of each.
    """
    n_heads, d_head, d_model = outputs.shape
    group = n_heads // len(values)
    counts = torch.empty(2, len(relations), n_heads, dtype=torch.long, device=sources.device)
    flops = 0
    for number, (pairs, k) in enumerate(relations):
        embedded, target = sources[pairs.source], pairs.target[:, None]
        for head in range(n_heads):
            whole = values[head // group] @ outputs[head]
            logits = embedded @ whole @ unembedding.T
            for sign, scored in enumerate((logits, -logits)):
                best = scored.topk(k, dim=1).indices
                counts[sign, number, head] = (best == target).sum()
            flops += 2 * d_model * (d_head * d_model + len(target) * (d_model + len(unembedding)))
    return DenseHits(plain=counts[0], negated=counts[1], flops=flops)
