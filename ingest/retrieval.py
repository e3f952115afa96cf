"""Which keys heads attend to most while a model is about to say a needle again."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ingest.probes.sequences import Needle
from ingest.rows import Rows

Found = dict[int, Int[Tensor, "head answer"]]
"""By layer, the needle's token that a head attends to most, -1 where it is none or another."""


class Search:
    """What one batch of sequences shows of its needles, one each."""

    def __init__(self, needles: Sequence[Needle], tokens: Int[Tensor, "batch token"]) -> None:
        """Nothing is seen yet; without needles nothing will be."""
        self._needles = needles
        self._tokens = tokens
        # What is said at a position is decided at the one before.
        self._queries = [range(one.answer.start - 1, one.answer.stop - 1) for one in needles]
        self._keys: list[dict[int, list[Int[Tensor, "head query"]]]] = [{} for _ in needles]

    def observe(self, layer: int, rows: Rows) -> None:
        """See which key is attended most at every query that some rows have of the answers'."""
        for place, queries in enumerate(self._queries):
            start, stop = max(queries.start, rows.first), min(queries.stop, rows.stop)
            if start < stop:
                own = rows.patterns[place, :, start - rows.first : stop - rows.first]
                key = own.argmax(dim=-1) + rows.first_key
                self._keys[place].setdefault(layer, []).append(key)

    def results(
        self,
        stream: Float[Tensor, "batch token d_model"],
        unembed: Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token vocab"]],
    ) -> Iterator[tuple[Found, Bool[Tensor, " answer"]]]:
        """For each sequence what was found by layer, and which answer tokens the model says.

        Args:
            stream: What the model reads into logits.
            unembed: How it does that; the largest logit is what it says.
        """
        for place, needle in enumerate(self._needles):
            tokens = self._tokens[place]
            answer = tokens[needle.answer.start : needle.answer.stop]
            queries = self._queries[place]
            said = unembed(stream[place, queries.start : queries.stop]).argmax(dim=-1) == answer
            found = {
                layer: _in_needle(torch.cat(keys, dim=1), needle, tokens, answer)
                for layer, keys in self._keys[place].items()
            }
            yield found, said


def _in_needle(
    key: Int[Tensor, "head answer"],
    needle: Needle,
    tokens: Int[Tensor, " token"],
    answer: Int[Tensor, " answer"],
) -> Int[Tensor, "head answer"]:
    is_copy = (key >= needle.needle.start) & (key < needle.needle.stop) & (tokens[key] == answer)
    return torch.where(is_copy, key - needle.needle.start, -1)
