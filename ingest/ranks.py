"""Ranks of a relation's targets among everything that a head's weights write.

For a source token with embedding e, head h writes e W_V W_O into the residual stream, and that
reads as logits e W_V W_O W_U. Only ranks below a small depth matter, so most of the product with
the vocabulary can be left out and the result stay exact: slices of the vocabulary are scored in
turn, and a pair whose target is beaten `depth` times already is a certain miss. What is left,
about one case in a hundred, goes through the whole vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SLICES = (256, 2_048, 16_384)
"""Columns scored by the end of each screening stage; larger ones serve fewer survivors."""

_ORDER_SEED = 0
_ROUNDING = 1e-5
"""Two float32 orders of summing a logit differ by less than this times |output| |unembedding|."""
_MAX_ELEMENTS = 1 << 24
"""Logits held at once: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Relation pairs as rows of a source matrix and token ids of targets, both [pair]."""

    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How many logits are strictly larger than the target's, [head, pair], capped at the depth.

    `negated` counts the same for the negated logits.
    """

    plain: Int[Tensor, "head pair"]
    negated: Int[Tensor, "head pair"]


class Unembedding:
    """The vocabulary side, prepared once for all layers."""

    def __init__(self, weight: Float[Tensor, "vocab d_model"]) -> None:
        """Convert to float32, and draw the order in which slices of the vocabulary are scored."""
        self.weight = weight.float()
        generator = torch.Generator().manual_seed(_ORDER_SEED)
        order = torch.randperm(len(weight), generator=generator).to(weight.device)
        ends = [min(end, len(weight)) for end in SLICES]
        self.slices = [
            self.weight[order[start:end]]
            for start, end in zip([0, *ends], ends, strict=False)
            if end > start
        ]
        self.largest_norm = float(self.weight.norm(dim=1).max())


def target_ranks(
    sources: Float[Tensor, "source d_model"],
    values: Float[Tensor, "kv_head d_model d_head"],
    outputs: Float[Tensor, "head d_head d_model"],
    unembedding: Unembedding,
    pairs: Pairs,
    *,
    depth: int,
) -> Ranks:
    """Rank every pair's target for every head of one layer, exactly up to `depth`.

    Args:
        sources: What the heads read, one row per distinct source token.
        values: W_V per KV head.
        outputs: W_O per query head.
        unembedding: The vocabulary's directions.
        pairs: Which source maps to which target.
        depth: Ranks from here on are all returned as `depth`.

    Source: Elhelo and Geva 2024, arXiv:2412.11965 (section 3); computed in float32.
    """
    n_heads = len(outputs)
    group = n_heads // len(values)
    per_kv_head = torch.einsum("sd,kde->kse", sources.float(), values.float())
    full = torch.full((n_heads, len(pairs.source)), depth, device=sources.device)
    ranks = Ranks(plain=full, negated=full.clone())
    for head in range(n_heads):
        written = per_kv_head[head // group][pairs.source]
        output = outputs[head].float()
        alive = _screen(written, output, unembedding, pairs.target, depth)
        rows = alive.nonzero().squeeze(1)
        above, below = _count_all(written[rows] @ output, unembedding.weight, pairs.target[rows])
        ranks.plain[head, rows] = above.clamp(max=depth)
        ranks.negated[head, rows] = below.clamp(max=depth)
    return ranks


def _screen(
    written: Float[Tensor, "pair d_head"],
    output: Float[Tensor, "d_head d_model"],
    unembedding: Unembedding,
    targets: Int[Tensor, " pair"],
    depth: int,
) -> Bool[Tensor, " pair"]:
    """Which pairs may still have their target within the depth, plain or negated."""
    into_residual = written @ output
    own = (into_residual * unembedding.weight[targets]).sum(dim=1, keepdim=True)
    margin = _ROUNDING * unembedding.largest_norm * into_residual.norm(dim=1, keepdim=True)
    above = torch.zeros(len(targets), dtype=torch.long, device=written.device)
    below = above.clone()
    alive = torch.ones_like(above, dtype=torch.bool)
    for stage, columns in enumerate(unembedding.slices):
        rows = alive.nonzero().squeeze(1)
        # Where few columns meet many rows, going through the head's own dimension is cheaper.
        if stage == 0:
            logits = written[rows] @ (output @ columns.T)
        else:
            logits = into_residual[rows] @ columns.T
        above[rows] += _count_larger(logits, (own + margin)[rows])
        below[rows] += _count_smaller(logits, (own - margin)[rows])
        alive = (above < depth) | (below < depth)
    return alive


def _count_all(
    into_residual: Float[Tensor, "row d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " row"],
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Strictly larger and strictly smaller logits than the target's, over the whole vocabulary."""
    above, below = [], []
    step = max(1, _MAX_ELEMENTS // len(unembedding))
    for rows, target in zip(into_residual.split(step), targets.split(step), strict=True):
        logits = rows @ unembedding.T
        own = logits.gather(1, target[:, None])
        above.append(_count_larger(logits, own))
        below.append(_count_smaller(logits, own))
    return torch.cat(above), torch.cat(below)


def _count_larger(
    logits: Float[Tensor, "row column"], bound: Float[Tensor, "row one"]
) -> Int[Tensor, " row"]:
    return _count(logits > bound)


def _count_smaller(
    logits: Float[Tensor, "row column"], bound: Float[Tensor, "row one"]
) -> Int[Tensor, " row"]:
    return _count(logits < bound)


def _count(mask: Bool[Tensor, "row column"]) -> Int[Tensor, " row"]:
    if mask.device.type != "cpu":
        return mask.sum(dim=1)
    # On a CPU torch counts booleans several times slower than numpy, at vocabulary width.
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))
