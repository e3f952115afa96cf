"""What a head does with common words, in a form that heads of different models share.

For anchor words s and t, a head's weights hold M[s, t] = x_s W_V W_O u_t: how much writing of s
promotes t. Neither the size of the residual stream nor its basis is in M, nor the tokenizer beyond
knowing the words. M is centred, scaled to length 1 and projected by random signs, so that dot
products of signatures estimate cosines of maps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ingest.heads import LayerHeads

SIZE = 128
_SEED = 0
_BITS = 64
"""Of one raw number of numpy's bit generator."""


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The anchor words that a model's tokenizer knows, as its heads see them."""

    index: Int[Tensor, " anchor"]
    """Which of `anchor_words()` these are."""
    sources: Float[Tensor, "anchor d_model"]
    """x: what the heads read, an embedding or the first MLP's output."""
    outputs: Float[Tensor, "anchor d_model"]
    """u: rows of the unembedding."""


@cache
def anchor_words() -> tuple[str, ...]:
    """192 English words and names, digits and punctuation; their order is part of signatures."""
    text = (files("ingest.probes") / "data" / "anchors.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def anchor_tokens(encode: Callable[[str], Sequence[int | None]]) -> dict[int, int]:
    """Token ids of the anchors that are one token, by index.

    Words are looked for with a space before them first, digits and punctuation without: that is
    how most text has them, though tokenizers that always put a space first know words without.

    Args:
        encode: From a text to tokens, without special ones; None for what the model has not.
    """
    found = {}
    for index, word in enumerate(anchor_words()):
        spaced = f" {word}"
        for text in (spaced, word) if word.isalpha() else (word, spaced):
            tokens = encode(text)
            if len(tokens) == 1 and tokens[0] is not None:
                found[index] = tokens[0]
                break
    return found


def signatures(heads: LayerHeads, anchors: Anchors) -> Float[Tensor, "head number"]:
    """Signatures of one layer's heads, [head, 128], each of length 1.

    Over pairs of maps with cosine c, the dot product of signatures has mean c and standard error
    (1 - c^2) / sqrt(128): 0.09 for unrelated heads, 0.02 at 0.9, and none for equal ones. Where
    models lack different anchors, what one lacks counts as 0 in its map.

    NaN where a map is zero once it is centred, as for a head of zeros or for fewer than two
    anchors.

    Source: Johnson and Lindenstrauss 1984; Achlioptas 2003 (theorem 1.1, signs +-1).
    """
    read = anchors.sources.float() @ heads.part("value")
    written = heads.part("output") @ anchors.outputs.float().T
    maps = (read.repeat_interleave(heads.group, dim=0) @ written).double()
    centred = maps - maps.mean(dim=1, keepdim=True)
    centred -= centred.mean(dim=2, keepdim=True)
    # Of a map that is the same for all words, centring leaves rounding.
    sizes = torch.linalg.matrix_norm(maps)
    centred[torch.linalg.matrix_norm(centred) <= torch.finfo(torch.float32).eps * sizes] = 0
    index = anchors.index.cpu()
    signs = _signs()[index[:, None], index].to(centred)
    projected = torch.einsum("hst,stn->hn", centred, signs)
    return projected / projected.norm(dim=1, keepdim=True)


@cache
def _signs() -> Float[Tensor, "anchor anchor number"]:
    """Random signs from raw bits, the same on every machine and for every release of numpy."""
    n = len(anchor_words())
    raw = np.random.PCG64(_SEED).random_raw(n * n * SIZE // _BITS)
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8)).reshape(n, n, SIZE)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)
