"""Ranks of a relation's targets among everything that a head writes.

For a source token with embedding e, head h's weights write e W_V W_O into the residual stream,
and that reads as logits e W_V W_O W_U; in a run it reads as z W_O W_U, where z is what attention
has made of the head's values. Only ranks below a small depth matter, so most of the product with
the vocabulary can be left out and the result stay exact: slices of the vocabulary are scored in
turn, and a case (a head and a pair) whose target is beaten `depth` times both ways is a certain
miss. One case in a hundred goes through the whole vocabulary.

Only what is certain is counted: logits farther from the target's than rounding could move them.
The few within that margin are settled in float64 at the end. So the ranks are those of float64,
whatever the dtype of the products, the order of the slices and the device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FIRST = 256
_LARGEST = 8_192
"""Columns of the first slice, which every case goes through, and of the largest."""

_MAX_ELEMENTS = 1 << 22
"""Of a temporary tensor: 16 MB in float32, which a CPU's cache may hold."""

_UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-22}
"""What rounding one sum of a product changes, relative to it.

Products of bfloat16 are exact in float32 and summed in it, but tensor cores cut off where others
round, which costs twice as much; twice that is allowed here.
"""
_SPARE = 8
"""Added to the terms of a product: roundings to float32 before it, and all of float64."""
_DEVIATIONS = 10.0
"""Roundings of n terms add up to less than sqrt(n) times this, but for odds of 4e-22 n."""


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
    """The vocabulary side, prepared once for all layers; keeps a copy, in the weight's dtype."""

    def __init__(
        self, weight: Float[Tensor, "vocab d_model"], *, screening: torch.dtype = torch.float32
    ) -> None:
        """Order the vocabulary, the likeliest to beat others first.

        Args:
            weight: One direction per token.
            screening: float32, or bfloat16 where products of that are much faster. The ranks are
                the same.

        Raises:
            ValueError: If screening is of another dtype.
        """
        if screening not in _UNITS:
            raise ValueError(f"screening in {screening}: expected float32 or bfloat16")
        self.weight = weight
        self.screening = screening
        chunks = weight.split(max(1, _MAX_ELEMENTS // weight.shape[1]))
        # What all directions share moves every logit alike. By what is left of them, the long ones
        # stand out, either way: on SmolLM2 a quarter as many cases survive 2,048 columns as in
        # random order.
        mean = torch.stack([chunk.float().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(weight)
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
        norm, lost_norm = (float(some.norm(dim=1).max()) for some in (full, lost))
        return _Slice(tokens=tokens, rows=rows, norm=norm, lost=lost_norm)


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
            infinite weights. One that writes nothing ties everywhere, which is rank 0.

    Source: Elhelo and Geva 2024, arXiv:2412.11965 (section 3).
    """
    read = torch.einsum("sd,kde->kse", sources.double(), values.double())
    return output_ranks(read, outputs, unembedding, pairs, depth=depth)


def output_ranks(
    read: Float[Tensor, "kv_head source d_head"],
    outputs: Float[Tensor, "head d_head d_model"],
    unembedding: Unembedding,
    pairs: Pairs,
    *,
    depth: int,
) -> Ranks:
    """As `target_ranks`, of what heads hold already: their outputs are read @ W_O.

    Args:
        read: What W_O is applied to, one row per source; query heads may share it in groups.
        outputs: W_O per query head.
        unembedding: The vocabulary's directions.
        pairs: Which source maps to which target.
        depth: As for `target_ranks`; a source whose row has NaN or infinite values ranks nothing,
            and one of zeros ties everywhere.
    """
    cases = _Cases(read, outputs, unembedding, pairs, depth)
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
        read: Float[Tensor, "kv_head source d_head"],
        outputs: Float[Tensor, "head d_head d_model"],
        unembedding: Unembedding,
        pairs: Pairs,
        depth: int,
    ) -> None:
        n_heads, n_pairs = len(outputs), len(pairs.source)
        self._unembedding = unembedding
        self._outputs = outputs
        self._depth = depth
        self._head = torch.arange(n_heads, device=outputs.device).repeat_interleave(n_pairs)
        self._target = pairs.target.repeat(n_heads)
        kv_head = self._head // (n_heads // len(read))
        self._row = kv_head * read.shape[1] + pairs.source.repeat(n_heads)
        # Scaling what a head reads, and its outputs, moves no rank and keeps float32 from
        # overflowing. `reach` bounds the norm of what it then writes.
        rows = read.double().flatten(0, 1)
        read_norm, norm = rows.norm(dim=1), torch.stack([one.double().norm() for one in outputs])
        read_scale, self._scale = _power_of_two(read_norm), _power_of_two(norm)
        self._read = rows / read_scale[:, None]
        self._reach = (read_norm / read_scale)[self._row] * (norm / self._scale)[self._head]
        self._own = self._own_logits(pairs)
        finite = self._own.isfinite()
        self._open = finite & (self._reach > 0)
        self.above = torch.where(finite, 0, depth)
        self.below = self.above.clone()
        self._close: list[tuple[Int[Tensor, " close"], Int[Tensor, " close"]]] = []

    def _own_logits(self, pairs: Pairs) -> Float[Tensor, " case"]:
        tokens, index = pairs.target.unique(return_inverse=True)
        targets = self._unembedding.weight[tokens].double()
        n_heads, d_head, d_model = self._outputs.shape
        rows = self._row.reshape(n_heads, -1)
        own = torch.empty_like(rows, dtype=self._read.dtype)
        step = max(1, _MAX_ELEMENTS // (d_head * max(d_model, len(index))))
        for heads in torch.arange(n_heads).split(step):
            outputs = torch.cat([self._output(head) for head in heads.tolist()])
            directions = (targets @ outputs.T).reshape(len(targets), len(heads), d_head)
            own[heads] = (self._read[rows[heads]] * directions[index].transpose(0, 1)).sum(dim=2)
        return own.flatten()

    def screen(self, number: int) -> None:
        """Count a slice's logits for the cases undecided so far.

        By the cheaper way for each head: through its own dimension where many cases share the
        product of its outputs with the columns, through the model's where few are left.
        """
        columns = self._unembedding.slices[number]
        width, (n_heads, d_head, d_model) = len(columns.tokens), self._outputs.shape
        step = max(1, _MAX_ELEMENTS // max(width, d_model))
        undecided = self._undecided()
        left = undecided.reshape(n_heads, -1).sum(dim=1)
        crowded = d_head * (d_model + left) * width < left * d_model * (d_head + width)
        cases = undecided.nonzero().squeeze(1)
        through_head = crowded[self._head[cases]]
        heads = crowded.nonzero().squeeze(1).tolist()
        if heads:
            outputs = torch.cat([self._output(head).float() for head in heads])
            products = (outputs @ columns.rows.float().T).split(d_head)
            directions = dict(zip(heads, products, strict=True))
            error = _relative_error(torch.float32, d_model + d_head) * columns.norm
            for some in cases[through_head].split(step):
                logits = outputs.new_empty(len(some), width)
                self._read_times(some, directions.__getitem__, out=logits)
                self._count(some, number, logits, error * self._reach[some])
        rows = columns.rows.to(self._unembedding.screening)
        unit = _relative_error(rows.dtype, d_model)
        for some in cases[~through_head].split(step):
            written = self._written(some)
            given = written.to(rows.dtype)
            norm, lost = written.norm(dim=1), (written - given).norm(dim=1)
            errors = norm * columns.lost
            errors += (lost + unit * (norm + lost)) * (columns.norm + columns.lost)
            self._count(some, number, given @ rows.T, errors)

    def _undecided(self) -> Bool[Tensor, " case"]:
        return self._open & ((self.above < self._depth) | (self.below < self._depth))

    def _output(self, head: int) -> Float[Tensor, "d_head d_model"]:
        return self._outputs[head].double() / self._scale[head]

    def _written(self, cases: Int[Tensor, " case"]) -> Float[Tensor, "case d_model"]:
        written = self._read.new_empty(len(cases), self._outputs.shape[2])
        self._read_times(cases, self._output, out=written)
        return written

    def _read_times(
        self,
        cases: Int[Tensor, " case"],
        factor: Callable[[int], Float[Tensor, "d_head any"]],
        *,
        out: Float[Tensor, "case any"],
    ) -> None:
        """Multiply what the cases' heads read by a factor of each head."""
        heads, counts = self._head[cases].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        reads = self._read[self._row[cases]].to(out.dtype).split(sizes)
        for head, read, room in zip(heads.tolist(), reads, out.split(sizes), strict=True):
            torch.mm(read, factor(head), out=room)

    def _count(
        self,
        cases: Int[Tensor, " case"],
        number: int,
        logits: Float[Tensor, "case column"],
        error: Float[Tensor, " case"],
    ) -> None:
        """Count logits that are off by no more than the error, and keep those too close to tell."""
        own = self._own[cases]
        # Rounding keeps order, so rounded bounds part rounded logits as exact ones the exact.
        low = (own - error).to(logits.dtype)[:, None]
        high = (own + error).to(logits.dtype)[:, None]
        # On a CPU, comparing into floats and summing those is faster than counting booleans.
        room = torch.empty_like(logits)
        above = torch.gt(logits, high, out=room).sum(dim=1, dtype=torch.float32).long()
        below = torch.lt(logits, low, out=room).sum(dim=1, dtype=torch.float32).long()
        self.above[cases] += above
        self.below[cases] += below
        itself = self._unembedding.slice_of[self._target[cases]] == number
        unclear = logits.shape[1] - above - below > itself
        rows = (unclear & self._undecided()[cases]).nonzero().squeeze(1)
        near = (logits[rows] >= low[rows]) & (logits[rows] <= high[rows])
        row, column = near.nonzero(as_tuple=True)
        self._close.append((cases[rows[row]], self._unembedding.slices[number].tokens[column]))
        if sum(len(close) for close, _ in self._close) > _MAX_ELEMENTS:
            self.settle()

    def settle(self) -> None:
        """Compare the logits too close to tell, in float64, of cases that are still undecided."""
        weight = self._unembedding.weight
        step = max(1, _MAX_ELEMENTS // weight.shape[1] // 4)
        for cases, tokens in self._close:
            wanted = self._undecided()[cases]
            parts = cases[wanted].split(step), tokens[wanted].split(step)
            for some, token in zip(*parts, strict=True):
                # Of a duplicate of the target's direction, this is 0 to the last bit.
                difference = weight[token].double() - weight[self._target[some]].double()
                lead = (self._written(some) * difference).sum(dim=1)
                self.above.index_add_(0, some, (lead > 0).long())
                self.below.index_add_(0, some, (lead < 0).long())
        self._close.clear()


def _power_of_two(norm: Float[Tensor, " one"]) -> Float[Tensor, " one"]:
    """The next one above: dividing by it rounds nothing, so that ties stay ties."""
    return torch.where(norm > 0, norm / norm.frexp().mantissa, 1)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TensorFloat-32 for float32, no sums in bfloat16: the bounds on errors count on it."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]


def _relative_error(dtype: torch.dtype, n_terms: int) -> float:
    """How far a product of vectors may be off, relative to the product of their norms.

    n roundings at the worst (Higham 2002, Accuracy and Stability of Numerical Algorithms, section
    3.1), which for thousands of terms never happens: errors of either sign add up like random ones
    (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis, theorem 3.1).
    """
    terms = n_terms + _SPARE
    return _UNITS[dtype] * min(terms, _DEVIATIONS * terms**0.5)
