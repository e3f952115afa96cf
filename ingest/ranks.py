"""Ranks of a relation's targets among everything that a head's weights write.

For a source token with embedding e, head h writes e W_V W_O into the residual stream, and that
reads as logits e W_V W_O W_U. Only ranks below a small depth matter, so most of the product with
the vocabulary can be left out and the result stay exact: slices of the vocabulary are scored in
turn, and a case (a head and a pair) whose target is beaten `depth` times both ways already is a
certain miss. One case in a hundred goes through the whole vocabulary.

Only what is certain is counted: logits farther from the target's than rounding could move them.
The few within that margin are settled in float64, one by one. So the ranks are those of float64,
whatever the dtype of the products, the order of the slices and the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FIRST = 256
_LARGEST = 8_192
"""Columns of the first slice, which all cases go through, and of the largest; widths double."""

_MAX_ELEMENTS = 1 << 24
"""Of a temporary tensor, where its size is free: 64 MB in float32."""

_UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-22}
"""A product of vectors of length n is off by n times this times their lengths, at the most.

That holds for any order of summing (Higham 2002, Accuracy and Stability of Numerical Algorithms,
section 3.1). bfloat16 products are exact in float32 and summed in it; tensor cores cut sums off
where others round, which costs twice as much, and is given twice that here.
"""
_SPARE = 8
"""Added to n for roundings before and after the product, of float64 to float32 for one."""


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


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """Columns scored together, and the largest norm of one.

    `lost` is the largest norm of what conversion to the screening dtype takes from one.
    """

    tokens: Int[Tensor, " column"]
    rows: Float[Tensor, "column d_model"]
    norm: float
    lost: float


class Unembedding:
    """The vocabulary side, prepared once for all layers; keeps a copy in the same dtype."""

    def __init__(
        self, weight: Float[Tensor, "vocab d_model"], *, screening: torch.dtype = torch.float32
    ) -> None:
        """Order the vocabulary, the likeliest to beat others first.

        Args:
            weight: One direction per token.
            screening: float32, or bfloat16 where products of that are faster; ranks are the same.
        """
        self.weight = weight
        self.screening = screening
        chunks = weight.split(max(1, _MAX_ELEMENTS // weight.shape[1]))
        # What all directions share moves every logit alike. Of what is left, long ones stand out
        # either way: on SmolLM2 four times fewer cases survive 2,048 columns than in random order.
        total = torch.stack([chunk.sum(dim=0, dtype=torch.float32) for chunk in chunks]).sum(dim=0)
        mean = total / len(weight)
        spread = torch.cat([(chunk.float() - mean).norm(dim=1) for chunk in chunks])
        order = spread.argsort(descending=True, stable=True)
        ends = [0]
        while ends[-1] < len(order):
            ends.append(min(ends[-1] + min(max(ends[-1], _FIRST), _LARGEST), len(order)))
        self.slices = [self._slice(order[start:end]) for start, end in pairwise(ends)]
        self.slice_of = torch.empty_like(order)
        for number, columns in enumerate(self.slices):
            self.slice_of[columns.tokens] = number

    def _slice(self, tokens: Int[Tensor, " column"]) -> _Slice:
        rows = self.weight[tokens]
        full = rows.float()
        lost = full - full.to(self.screening)
        return _Slice(
            tokens=tokens,
            rows=rows,
            norm=float(full.norm(dim=1).max()),
            lost=float(lost.norm(dim=1).max()),
        )


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
        depth: Ranks from here on are all returned as `depth`. So are those of a head with NaN or
            infinite weights; one that writes nothing ties everywhere, which is rank 0.

    Source: Elhelo and Geva 2024, arXiv:2412.11965 (section 3).
    """
    cases = _Cases(sources, values, outputs, unembedding, pairs, depth)
    with _full_precision():
        for number in range(len(unembedding.slices)):
            cases.screen(number)
        cases.settle()
    shape = len(outputs), len(pairs.source)
    return Ranks(
        plain=cases.above.clamp(max=depth).reshape(shape),
        negated=cases.below.clamp(max=depth).reshape(shape),
    )


class _Cases:
    """Every head and pair of a layer, head by head, and what is known of the target's rank."""

    def __init__(
        self,
        sources: Float[Tensor, "source d_model"],
        values: Float[Tensor, "kv_head d_model d_head"],
        outputs: Float[Tensor, "head d_head d_model"],
        unembedding: Unembedding,
        pairs: Pairs,
        depth: int,
    ) -> None:
        self._unembedding = unembedding
        self._depth = depth
        self._outputs = outputs
        n_heads, n_pairs = len(outputs), len(pairs.source)
        self._head = torch.arange(n_heads, device=sources.device).repeat_interleave(n_pairs)
        self._target = pairs.target.repeat(n_heads)
        kv_head = self._head // (n_heads // len(values))
        self._row = kv_head * len(sources) + pairs.source.repeat(n_heads)
        # Scaling what a head reads, or its outputs, leaves ranks as they are. Both get length 1,
        # so that errors depend on the columns alone, and nothing overflows.
        read = torch.einsum("sd,kde->kse", sources.double(), values.double()).flatten(0, 1)
        read_length = read.norm(dim=1)
        self._read = read / _divisor(read_length)[:, None]
        self._length = torch.stack([output.double().norm() for output in outputs])
        self._own = self._own_logits(pairs)
        finite = self._own.isfinite()
        self._open = finite & (read_length[self._row] > 0) & (self._length[self._head] > 0)
        self.above = torch.where(finite, 0, depth)
        self.below = self.above.clone()
        self._close: list[tuple[Tensor, Tensor]] = []

    def screen(self, number: int) -> None:
        """Count a slice's logits for the cases undecided so far.

        By the cheaper way for each head: through its own dimension where many cases share the
        product of its outputs with the columns, through the model's where few are left.
        """
        columns = self._unembedding.slices[number]
        full = columns.rows.float()
        width, (n_heads, d_head, d_model) = len(full), self._outputs.shape
        step = max(1, _MAX_ELEMENTS // max(width, d_model))
        cases = self._undecided().nonzero().squeeze(1)
        per_head = self._head[cases].bincount(minlength=n_heads)
        crowded = d_head * (d_model + per_head) * width < per_head * d_model * (d_head + width)
        error = _UNITS[torch.float32] * (d_model + d_head + _SPARE) * columns.norm
        for head in crowded.nonzero().squeeze(1).tolist():
            directions = self._output(head).float() @ full.T
            for some in cases[self._head[cases] == head].split(step):
                logits = self._read[self._row[some]].float() @ directions
                self._count(some, number, logits, torch.full_like(self._own[some], error))
        rows = full.to(self._unembedding.screening)
        unit = _UNITS[rows.dtype] * (d_model + _SPARE)
        for some in cases[~crowded[self._head[cases]]].split(step):
            written = self._written(some)
            given = written.to(rows.dtype)
            length, lost = written.norm(dim=1), (written - given).norm(dim=1)
            # What conversion takes from either factor, and what the product adds.
            errors = (lost + unit * length) * (columns.norm + columns.lost) + length * columns.lost
            self._count(some, number, given @ rows.T, errors)

    def settle(self) -> None:
        """Count the logits that were too close to tell, for the cases that they matter to."""
        weight = self._unembedding.weight
        step = max(1, _MAX_ELEMENTS // (4 * weight.shape[1]))
        for cases, tokens in self._close:
            open_ = self._undecided()[cases]
            for case, token in zip(
                cases[open_].split(step), tokens[open_].split(step), strict=True
            ):
                global N
                N += len(case)
                lead = weight[token].double() - weight[self._target[case]].double()
                lead = (self._written(case) * lead).sum(dim=1)
                self.above.index_add_(0, case, (lead > 0).long())
                self.below.index_add_(0, case, (lead < 0).long())
        self._close.clear()

    def _own_logits(self, pairs: Pairs) -> Float[Tensor, " case"]:
        tokens, index = pairs.target.unique(return_inverse=True)
        targets = self._unembedding.weight[tokens].double().T
        own = torch.empty_like(self._row, dtype=torch.float64).reshape(len(self._outputs), -1)
        for head, row in enumerate(self._row.reshape(own.shape)):
            directions = (self._output(head) @ targets).T
            own[head] = (self._read[row] * directions[index]).sum(dim=1)
        return own.flatten()

    def _output(self, head: int) -> Float[Tensor, "d_head d_model"]:
        return self._outputs[head].double() / _divisor(self._length[head])

    def _written(self, cases: Int[Tensor, " case"]) -> Float[Tensor, "case d_model"]:
        written = self._read.new_empty(len(cases), self._outputs.shape[2])
        heads, counts = self._head[cases].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        reads = self._read[self._row[cases]].split(sizes)
        for head, read, out in zip(heads.tolist(), reads, written.split(sizes), strict=True):
            torch.mm(read, self._output(head), out=out)
        return written

    def _undecided(self) -> Bool[Tensor, " case"]:
        return self._open & ((self.above < self._depth) | (self.below < self._depth))

    def _count(
        self,
        cases: Int[Tensor, " case"],
        number: int,
        logits: Float[Tensor, "case column"],
        error: Float[Tensor, " case"],
    ) -> None:
        own = self._own[cases]
        # Rounding keeps order: what is on one side of a rounded bound was there before.
        low = (own - error).to(logits.dtype)[:, None]
        high = (own + error).to(logits.dtype)[:, None]
        # Comparing into floats and summing those is several times faster on a CPU than into
        # booleans.
        room = torch.empty_like(logits)
        above = torch.gt(logits, high, out=room).sum(dim=1, dtype=torch.float32).long()
        below = torch.lt(logits, low, out=room).sum(dim=1, dtype=torch.float32).long()
        self.above[cases] += above
        self.below[cases] += below
        itself = self._unembedding.slice_of[self._target[cases]] == number
        unclear = logits.shape[1] - above - below > itself.long()
        rows = (unclear & self._undecided()[cases]).nonzero().squeeze(1)
        near = (logits[rows] >= low[rows]) & (logits[rows] <= high[rows])
        row, column = near.nonzero(as_tuple=True)
        self._close.append((cases[rows[row]], self._unembedding.slices[number].tokens[column]))


N = 0


def _divisor(norm):
    return norm.where(norm > 0, 1)


@contextmanager
def _full_precision() -> Iterator[None]:
    yield
