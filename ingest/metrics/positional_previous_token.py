"""Attention to the position before, by learned position embeddings alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, weight_metric


@weight_metric(
    name="positional_previous_token",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Voita et al. 2019, arXiv:1905.09418 (positional heads), on the pattern of normalised "
        "position embeddings without tokens; mean over q >= 1 of P[q, q-1]"
    ),
    needs=("query", "key", "positions"),
)
def positional_previous_token(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, " head"]:
    """Mean attention to the position before, in the pattern that learned positions alone make.

    P = softmax over k <= q of scaling (p_q W_Q + b_Q) . (p_k W_K + b_K). Undefined without learned
    positions, or with one only.
    """
    assert model.positions is not None  # noqa: S101 - narrows the type
    positions = model.positions.double()
    queries, keys = heads.part("query"), heads.part("key")
    future = torch.ones(len(positions), len(positions), device=positions.device).triu(1) > 0
    scores = []
    for head in range(heads.n_heads):
        kv = heads.kv_head(head)
        query, key = positions @ queries[head].double(), positions @ keys[kv].double()
        if heads.query_bias is not None:
            query += heads.query_bias[head]
        if heads.key_bias is not None:
            key += heads.key_bias[kv]
        pattern = (model.scaling * query @ key.T).masked_fill(future, -torch.inf).softmax(dim=1)
        scores.append(pattern.diagonal(offset=-1).mean())
    return torch.stack(scores)
