"""Composition scores of all pairs of heads, computed when asked for: the catalog has the top."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from catalog.declarations import COMPOSITIONS
from catalog.errors import UsageError
from ingest.composition import KINDS, compositions, reading, writing
from ingest.heads import split_finite
from ingest.progress import Progress, Silence
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.readers.weights import HeadReader


def composition_matrix(
    model: str,
    *,
    kind: str | None = None,
    layer: int | None = None,
    from_layer: int | None = None,
    revision: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> pa.Table:
    """Scores of every pair of heads, one row each, with the schema `COMPOSITIONS`.

    Args:
        model: A folder, a GGUF file or a Hub id, as for `ingest`.
        kind: `query`, `key` or `value`; all three by default.
        layer: The layer that reads; all by default.
        from_layer: The earlier layer that writes; all by default.
        revision: Branch, tag or commit on the Hub.
        device: `auto`, `cpu` or `cuda`.
        progress: Told of every reading layer.

    Raises:
        ModelError: If the model cannot be read.
        UsageError: If there is no such kind, layer or pair of layers.
    """
    progress = progress or Silence()
    if kind is not None and kind not in KINDS:
        raise UsageError(f"no composition by {kind!r}; there are {', '.join(KINDS)}")
    prepared = loading.prepare(
        resolve(model, revision=revision, on_progress=progress.stage), on_progress=progress.stage
    )
    reader = loading.reader(prepared, device=loading.choose_device(device))
    reader.verify(first_mlp=False)
    pairs = _pairs(reader.n_layers, layer, from_layer)
    progress.steps("compositions", len(pairs))
    rows = []
    for reads, writes in pairs.items():
        rows += list(_rows(reader, reads, writes, KINDS if kind is None else (kind,)))
        progress.advance()
    return pa.concat_tables(rows)


def _pairs(n_layers: int, layer: int | None, from_layer: int | None) -> dict[int, list[int]]:
    """Per reading layer the earlier ones that are asked for."""
    reads = range(1, n_layers) if layer is None else [layer]
    pairs = {
        one: [w for w in range(one) if from_layer in (None, w)] for one in reads if one < n_layers
    }
    found = {one: writes for one, writes in pairs.items() if writes}
    if not found:
        raise UsageError(
            f"no pair of layers: the model has {n_layers}, counted from 0, and --from-layer must "
            "come before --layer"
        )
    return found


def _rows(
    reader: HeadReader, reads: int, writes: list[int], kinds: tuple[str, ...]
) -> Iterator[pa.Table]:
    readers = reading(split_finite(reader.heads(reads))[0], reads)
    for earlier in writes:
        heads = split_finite(reader.heads(earlier, ("value", "output")))[0]
        scores = compositions(readers, writing(heads, earlier)).numpy()
        for kind in kinds:
            own = scores[KINDS.index(kind)]
            head, from_head = (place.ravel() for place in np.indices(own.shape))
            values = own.ravel()
            yield pa.table(
                {
                    "kind": np.full(len(head), kind),
                    "layer": np.full(len(head), reads),
                    "head": head,
                    "from_layer": np.full(len(head), earlier),
                    "from_head": from_head,
                    # Undefined is NULL: a head of zeros, or one without such matrices.
                    "value": pa.array(values, mask=np.isnan(values)),
                },
                schema=COMPOSITIONS,
            )
