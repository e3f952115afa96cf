"""A head's OV circuit as a map from tokens to tokens, through its eigenvalues."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices

_ROUNDING = 2.0**-23
"""Eigenvalues up to this, float32's epsilon, times |W_O| |W_U^T W_E W_V| count as zero.

Those that are zero on paper come out twenty times smaller in heads of usual sizes.
"""
_MAX_ELEMENTS = 1 << 24
"""Of a float32 copy of some rows of the vocabulary: 64 MB."""


def gram_matrix(
    unembedding: Float[Tensor, "vocab d_model"], embedding: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """Sum over tokens of u_t^T e_t, in float32, whatever the dtype of the vocabulary."""
    d_model = embedding.shape[1]
    total = torch.zeros(d_model, d_model, device=embedding.device)
    step = max(1, _MAX_ELEMENTS // d_model)
    for out, into in zip(unembedding.split(step), embedding.split(step), strict=True):
        total.addmm_(out.float().T, into.float())
    return total


def token_eigenvalues(
    heads: LayerHeads, model: ModelMatrices
) -> Complex[Tensor, "head eigenvalue"]:
    """Nonzero eigenvalues of W_E W_V W_O W_U [vocab, vocab], complex128; 0 where numerically zero.

    AB and BA share their nonzero eigenvalues, so those of W_O (W_U^T W_E) W_V [d_head, d_head]
    are all that there can be.
    """
    assert model.gram is not None  # noqa: S101 - narrows the type
    read = [model.gram @ value for value in heads.part("value")]
    rows = []
    for head, output in enumerate(heads.part("output")):
        into = read[heads.kv_head(head)]
        # CUDA has no eigenvalues of general matrices in every build of torch.
        found = torch.linalg.eigvals((output @ into).double().cpu())
        found[found.abs() <= _ROUNDING * float(output.norm() * into.norm())] = 0
        rows.append(found)
    return torch.stack(rows)
