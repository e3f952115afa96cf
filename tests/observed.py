"""Whole patterns from the blocks of rows that an observer is shown."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ingest.readers.attention import observing
from ingest.rows import Rows


class Whole:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[Rows]] = {}

    def __call__(self, layer: int, rows: Rows) -> None:
        self.blocks.setdefault(layer, []).append(rows)

    @property
    def patterns(self) -> dict[int, Tensor]:
        """By layer [batch, head, query, key], 0 where no key was shown."""
        return {layer: _joined(blocks) for layer, blocks in self.blocks.items()}

    @property
    def allowed(self) -> dict[int, Tensor]:
        """By layer, per query."""
        return {
            layer: torch.cat([one.allowed for one in blocks])
            for layer, blocks in self.blocks.items()
        }


def whole(
    model: PreTrainedModel, tokens: Tensor, *, n_rows: int | None = None, **kwargs: Any
) -> Whole:
    """Run a model under observation, in blocks of so many rows."""
    seen = Whole()
    with torch.inference_mode(), observing(model, seen, n_rows=n_rows):
        model(tokens, use_cache=False, **kwargs)
    return seen


def as_rows(
    patterns: Tensor, *, n_rows: int | None = None, window: int | None = None
) -> list[Rows]:
    """Whole patterns cut into blocks, as an observer would be shown them."""
    length = patterns.shape[-1]
    size = n_rows or length
    blocks = []
    for first in range(0, length, size):
        stop = min(first + size, length)
        start = 0 if window is None else max(first - window + 1, 0)
        query = torch.arange(first, stop)
        blocks.append(
            Rows(
                patterns=patterns[:, :, first:stop, start:stop],
                first=first,
                length=length,
                allowed=torch.minimum(query + 1, torch.tensor(window or length)),
            )
        )
    return blocks


def _joined(blocks: list[Rows]) -> Tensor:
    length = blocks[0].length
    assert [one.first for one in blocks] == [0, *(one.stop for one in blocks[:-1])]
    assert blocks[-1].stop == length
    return torch.cat(
        [functional.pad(one.patterns, (one.first_key, length - one.stop)) for one in blocks], dim=2
    )
