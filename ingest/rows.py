"""Rows of attention patterns: what observers hand to metrics, a few queries at a time.

A whole pattern is as large as the square of a sequence. A model's patterns are therefore made and
measured in blocks of consecutive queries, each with the keys that it can see.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Softmaxed attention of consecutive queries of one layer, in sequences of one length.

    What a sink that is a parameter took of a row is no key's: it is missing from the row.
    """

    patterns: Float[Tensor, "batch head query key"]
    """At least float32. The last key is the last query; no query attends to one before the first.
    """
    first: int
    """Position of the first query."""
    length: int
    """Of the sequences: the block with the query `length` - 1 is the last."""
    allowed: Int[Tensor, " query"]
    """How many keys each query may attend to, itself the last of them: min(q + 1, window)."""
    below_largest: Float[Tensor, "batch head query key"] | None = None
    """What is known of the logits: how far each lies below its row's largest, hence at most 0."""

    @property
    def n_queries(self) -> int:
        return self.patterns.shape[-2]

    @property
    def stop(self) -> int:
        """The position after the last query's."""
        return self.first + self.n_queries

    @property
    def first_key(self) -> int:
        """Position of the first key."""
        return self.stop - self.patterns.shape[-1]

    @cached_property
    def positions(self) -> Float[Tensor, " query"]:
        """Of the queries."""
        return torch.arange(
            self.first, self.stop, device=self.patterns.device, dtype=self.patterns.dtype
        )

    def since(self, position: int) -> slice:
        """The queries from a position on, as a slice of the block's."""
        return slice(min(max(position - self.first, 0), self.n_queries), None)

    def to_key(self, position: int) -> Float[Tensor, "batch head query"]:
        """Attention to one key, 0 where a query cannot see it."""
        index = position - self.first_key
        if not 0 <= index < self.patterns.shape[-1]:
            return self.patterns.new_zeros(self.patterns.shape[:-1])
        return self.patterns[..., index]

    def behind(self, distance: int, *, since: int = 0) -> Float[Tensor, "batch head position"]:
        """Attention to the key so many positions before the query.

        Of the queries that have such a key, from the position `since` on; 0 where it lies before
        the window.
        """
        skipped = self.since(max(since, distance)).start
        offset = self.first + skipped - distance - self.first_key
        lost = min(max(-offset, 0), self.n_queries - skipped)
        rows = self.patterns[..., skipped + lost :, :]
        found = rows.diagonal(offset=max(offset, 0), dim1=-2, dim2=-1)
        return torch.nn.functional.pad(found, (lost, 0)) if lost else found

    @cached_property
    def largest(self) -> Float[Tensor, "batch head query"]:
        """The largest attention of each row; NaN where the row has a NaN."""
        return self.patterns.amax(dim=-1)

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        """-sum P ln P of each row, in nats."""
        if self.below_largest is None:
            return torch.special.entr(self.patterns).sum(dim=-1)
        # ln P = (logit - largest logit) - ln Z, and the largest P is 1 / Z.
        log_z = -self.largest.log()
        return log_z * self.patterns.sum(dim=-1) - torch.linalg.vecdot(
            self.patterns, self.below_largest
        )

    @cached_property
    def distance(self) -> Float[Tensor, "batch head query"]:
        """Sum P (q - k) of each row, in tokens."""
        return self.distance_sink_free + self.to_key(0) * self.positions

    @cached_property
    def distance_sink_free(self) -> Float[Tensor, "batch head query"]:
        """Sum P (q - k) over all keys but the sequence's first."""
        # Nothing is subtracted from a sum that holds the sink: it may be nearly all there is.
        key = torch.arange(self.first_key, self.stop, device=self.patterns.device)
        reach = (self.positions[:, None] - key).clamp_(min=0)
        if self.first_key == 0:
            reach[:, 0] = 0
        return torch.linalg.vecdot(self.patterns, reach)

    @cached_property
    def sink_free(self) -> Float[Tensor, "batch head query"]:
        """Sum P over all keys but the sequence's first."""
        return self.patterns[..., 1 if self.first_key == 0 else 0 :].sum(dim=-1)

    def attended_most(self, distance: int, *, since: int) -> Float[Tensor, "batch head position"]:
        """1 where the key so many positions back has more than any other key, else 0.

        Queries as `behind` has them. A tie is 0: which of equal keys comes first would be decided
        by their order.
        """
        named = self.behind(distance, since=since)
        place = self.since(max(since, distance))
        is_most = named == self.largest[..., place]
        # Ties are looked for where they matter only; most heads have few such rows.
        found = self.patterns[..., place, :][is_most]
        is_alone = (found == found.amax(dim=-1, keepdim=True)).sum(dim=-1) == 1
        return is_most.masked_scatter(is_most, is_alone).to(named.dtype)
