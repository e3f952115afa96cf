"""How large a head's two circuits are."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, weight_metric


@weight_metric(
    name="ov_norm",
    version=1,
    unit="Frobenius norm",
    range=(0.0, None),
    source="|W_V W_O|, the OV circuit of Elhage et al. 2021; no norms or biases folded in",
    needs=("value", "output"),
)
def ov_norm(heads: LayerHeads, _model: ModelMatrices) -> Float[Tensor, " head"]:
    """Frobenius norm of the map from what is read to what is written."""
    return torch.linalg.matrix_norm(heads.core("ov"))


@weight_metric(
    name="qk_norm",
    version=1,
    unit="Frobenius norm",
    range=(0.0, None),
    source=(
        "|W_Q W_K^T|, the QK circuit of Elhage et al. 2021; no norms, biases, rotary embeddings or "
        "scaling folded in"
    ),
    needs=("query", "key"),
)
def qk_norm(heads: LayerHeads, _model: ModelMatrices) -> Float[Tensor, " head"]:
    """Frobenius norm of the bilinear form that scores a query against a key."""
    return torch.linalg.matrix_norm(heads.core("qk"))
