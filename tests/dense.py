"""Ranks of logits by the paper's dense method, from a GGUF file's own tensors.

Without transformers, and without any code of the reader.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

Array = NDArray[np.float64]
TIE = 1e-6
"""Of a row's largest difference of logits: what float32 cannot tell apart."""


@dataclass
class Rank:
    """How many logits are ahead, ties not counted and counted."""

    least: NDArray[np.int64]
    most: NDArray[np.int64]


class Tensors(Mapping[str, Array]):
    """A GGUF file's tensors, dequantised one by one."""

    def __init__(self, path: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def ranks(
    tensors: Tensors,
    layer: int,
    pairs: tuple[list[int], list[int]],
    *,
    heads: int,
    kv_heads: int,
    activation: Callable[[Array], Array],
) -> Iterator[tuple[Rank, Rank]]:
    """Per head how many logits are larger, and smaller, than each target's: W_VO formed whole."""
    source, target = pairs
    embedding = tensors["token_embd.weight"]
    x = embedding[source]
    if layer > 0:
        scale = tensors["blk.0.ffn_norm.weight"]
        read = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * scale
        gate = activation(read @ tensors["blk.0.ffn_gate.weight"].T)
        x = (gate * (read @ tensors["blk.0.ffn_up.weight"].T)) @ tensors["blk.0.ffn_down.weight"].T
    value = tensors[f"blk.{layer}.attn_v.weight"]
    output = tensors[f"blk.{layer}.attn_output.weight"]
    d_head = value.shape[0] // kv_heads
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        w_v = value[kv_head * d_head : (kv_head + 1) * d_head].T
        w_o = output[:, head * d_head : (head + 1) * d_head].T
        logits = (x @ (w_v @ w_o)) @ embedding.T
        own = logits[np.arange(len(target)), target][:, None]
        logits -= own
        lowest, highest = logits.min(axis=1), logits.max(axis=1)
        tie = TIE * np.maximum(-lowest, highest)[:, None]
        # The target itself is 0 ahead of itself: not larger, however ties are taken.
        yield (
            Rank(least=(logits > tie).sum(axis=1), most=(logits > -tie).sum(axis=1) - 1),
            Rank(least=(logits < -tie).sum(axis=1), most=(logits < tie).sum(axis=1) - 1),
        )


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
