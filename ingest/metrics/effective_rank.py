"""In how many dimensions a head's two circuits work."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, weight_metric
from ingest.metrics.singular_values import ov_singular_values, qk_singular_values

_SOURCE = "Roy and Vetterli 2007, The effective rank (definition 1); exp(entropy(sigma/sum sigma))"


@weight_metric(
    name="ov_effective_rank",
    version=1,
    unit="dimension",
    range=(1.0, None),
    source=f"{_SOURCE} of W_V W_O",
    needs=("value", "output"),
)
def ov_effective_rank(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, " head"]:
    """Effective number of dimensions that the head moves from token to token: 1 to d_head."""
    return _effective_rank(ov_singular_values(heads, model))


@weight_metric(
    name="qk_effective_rank",
    version=1,
    unit="dimension",
    range=(1.0, None),
    source=f"{_SOURCE} of W_Q W_K^T",
    needs=("query", "key"),
)
def qk_effective_rank(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, " head"]:
    """Effective number of dimensions in which queries meet keys: 1 to d_head."""
    return _effective_rank(qk_singular_values(heads, model))


def _effective_rank(singular: Float[Tensor, "head n"]) -> Float[Tensor, " head"]:
    """Undefined, 0 / 0, for a head of zeros."""
    shares = singular / singular.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).exp()
