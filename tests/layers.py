"""One layer's heads made of random numbers, and the dense matrices that they stand for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.heads import LayerHeads

Array = NDArray[np.float64]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(
    seed: int = 0,
    *,
    n_heads: int = 6,
    n_kv_heads: int = 2,
    d_model: int = 24,
    d_key: int = 5,
    d_value: int = 4,
    **parts: Tensor | None,
) -> LayerHeads:
    """Random heads, grouped, with keys and values of different sizes; `parts` replace."""
    made: dict[str, Any] = {
        "query": normal(n_heads, d_model, d_key, seed=4 * seed),
        "key": normal(n_kv_heads, d_model, d_key, seed=4 * seed + 1),
        "value": normal(n_kv_heads, d_model, d_value, seed=4 * seed + 2),
        "output": normal(n_heads, d_value, d_model, seed=4 * seed + 3),
    }
    return LayerHeads(n_heads=n_heads, n_kv_heads=n_kv_heads, **(made | parts))


def one_head(**parts: Tensor) -> LayerHeads:
    """A layer of one head from matrices without an axis for heads."""
    stacked: dict[str, Any] = {name: matrix[None] for name, matrix in parts.items()}
    return LayerHeads(n_heads=1, n_kv_heads=1, **stacked)


def array(tensor: Tensor) -> Array:
    return tensor.double().numpy()


def dense(heads: LayerHeads, circuit: str) -> Array:
    """W_V W_O or W_Q W_K^T of every query head, [head, d_model, d_model]."""
    if circuit == "ov":
        value, output = array(heads.part("value")), array(heads.part("output"))
        return np.stack([value[heads.kv_head(h)] @ output[h] for h in range(heads.n_heads)])
    query, key = array(heads.part("query")), array(heads.part("key"))
    return np.stack([query[h] @ key[heads.kv_head(h)].T for h in range(heads.n_heads)])
