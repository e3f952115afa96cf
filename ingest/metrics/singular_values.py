"""The spectra of a head's two circuits."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, vector_metric


@vector_metric(
    name="ov_singular_values",
    version=1,
    unit="singular value",
    range=(0.0, None),
    source="Singular values of W_V W_O, the OV circuit of Elhage et al. 2021",
    needs=("value", "output"),
)
def ov_singular_values(heads: LayerHeads, _model: ModelMatrices) -> Float[Tensor, "head n"]:
    """Singular values of W_V W_O, descending, as many as the head has dimensions."""
    return torch.linalg.svdvals(heads.core("ov"))


@vector_metric(
    name="qk_singular_values",
    version=1,
    unit="singular value",
    range=(0.0, None),
    source="Singular values of W_Q W_K^T, the QK circuit of Elhage et al. 2021",
    needs=("query", "key"),
)
def qk_singular_values(heads: LayerHeads, _model: ModelMatrices) -> Float[Tensor, "head n"]:
    """Singular values of W_Q W_K^T, descending, as many as the head has dimensions."""
    return torch.linalg.svdvals(heads.core("qk"))
