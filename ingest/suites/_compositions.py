"""The strongest compositions of a whole model, a block of reading layers at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from catalog.declarations import COMPOSITIONS
from ingest.composition import KINDS, Strongest, reading, writing
from ingest.heads import LayerHeads, Part, split_finite
from ingest.progress import Progress
from ingest.readers.weights import PARTS, HeadReader
from ingest.streaming import Kept, Workroom
from ingest.suites._memory import sized

STRONGEST = 10
"""Kept for every head with earlier heads, and as many with later ones."""
_BLOCK_BYTES = 2 << 30
"""Of the matrices that a block of layers reads with; earlier layers are streamed past them."""
_COLUMNS = tuple(name for name in COMPOSITIONS.names if name != "kind")


@dataclass(frozen=True, kw_only=True)
class Compositions:
    """The strongest pairs of heads, and by metric each head's strongest with any earlier one."""

    table: pa.Table
    scores: dict[str, Float[Tensor, "layer head"]]


def strongest(reader: HeadReader, room: Workroom, progress: Progress) -> Compositions:
    """Score all pairs of heads and keep the strongest; bounded memory, whatever the model's size.

    Each block reads the earlier layers anew: the fewer blocks the better.
    """
    sizes = reader.sizes
    per_layer = 4 * (sizes.n_heads + 2 * sizes.n_kv_heads) * sizes.d_head * reader.d_model
    width = max(1, sized(_BLOCK_BYTES) // per_layer)
    starts = range(0, reader.n_layers, width)

    def work(block: int) -> Kept:
        end = min(starts[block] + width, reader.n_layers)
        return _of_block(reader, range(starts[block], end))

    # What is kept of blocks of another width is of no use to these.
    name = f"compositions, {width} layers at a time"
    blocks = room.layers(name, len(starts), work, progress)
    scores = {
        name: torch.stack([kept.tensors[name] for kept in blocks]).nan_to_num(nan=-1).amax(dim=0)
        for name in blocks[0].tensors
        if name not in COMPOSITIONS.names
    }
    return Compositions(
        table=_merged([kept.tensors for kept in blocks]),
        scores={name: one.where(one >= 0, torch.nan) for name, one in scores.items()},
    )


def _of_block(reader: HeadReader, layers: range) -> Kept:
    top = Strongest(reader.n_layers, reader.sizes.n_heads, STRONGEST)
    readings = [reading(_heads(reader, layer, PARTS), layer) for layer in layers if layer]
    for earlier in range(layers[-1]):
        written = writing(_heads(reader, earlier, ("value", "output")), earlier)
        for one in readings:
            if one.layer > earlier:
                top.add(one, written)
    table = top.table()
    kinds = [KINDS.index(kind) for kind in table["kind"].to_pylist()]
    kind = torch.tensor(kinds, dtype=torch.long)
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in _COLUMNS}
    return Kept(tensors={"kind": kind, **columns, **top.scores()})


def _heads(reader: HeadReader, layer: int, parts: Sequence[Part]) -> LayerHeads:
    return split_finite(reader.heads(layer, parts))[0]


def _merged(blocks: Sequence[Mapping[str, Tensor]]) -> pa.Table:
    """Of what blocks have kept, what is among the strongest of the whole model.

    A reading head's strongest are all in its own block; a writing head's may be in any.
    """
    columns = {
        name: np.concatenate([kept[name].numpy() for kept in blocks]) for name in COMPOSITIONS.names
    }
    reads = np.stack([columns[name] for name in ("kind", "layer", "head")])
    writes = np.stack([columns[name] for name in ("kind", "from_layer", "from_head")])
    places = np.minimum(_place(reads, columns["value"]), _place(writes, columns["value"]))
    kept = places < STRONGEST
    chosen = {name: column[kept] for name, column in columns.items()}
    chosen["kind"] = np.array(KINDS)[chosen["kind"]]
    return pa.table(chosen, schema=COMPOSITIONS)


def _place(groups: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of every row its place, from 0, among those of its group (a column) by falling value."""
    if not values.size:
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((-values, *groups[::-1]))
    ordered = groups[:, order]
    begins = np.append(True, (ordered[:, 1:] != ordered[:, :-1]).any(axis=0))
    index = np.arange(len(order))
    places = np.empty_like(order)
    places[order] = index - np.maximum.accumulate(np.where(begins, index, 0))
    return places
