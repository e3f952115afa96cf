"""How much of what one head writes a later head reads, for all pairs of heads of a model.

Head 1 writes x W_V1 W_O1 into the residual stream. A later head 2 multiplies that, as the query's
side of its attention, with W_Q2 W_K2^T, as the key's side with W_K2 W_Q2^T, and as a value with
W_V2 W_O2. The composition score is the Frobenius norm of the product over the product of norms,
from 0, nothing, to 1, all; random matrices have about 1/sqrt(d_model) whatever their ranks.
Nothing is folded in: no norms between the two heads, no rotary embeddings, no biases.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

No d_model x d_model matrix is formed: orthogonal factors do not change norms, so triangles of thin
QR decompositions stand for the outer matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from catalog.declarations import COMPOSITIONS
from ingest.heads import Circuit, LayerHeads, Part
from ingest.metrics import COMPOSITION_METRICS
from ingest.metrics.composition import READS

KINDS = tuple(READS)
_FACTORS: dict[str, tuple[Circuit, Part, Part]] = {
    "query": ("qk", "query", "key"),
    "key": ("qk", "key", "query"),
    "value": ("ov", "value", "output"),
}
"""By kind: the circuit that reads, the matrix that meets the residual stream, and the other."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a layer's heads write: R_V W_O / |W_V W_O| in float32, NaN for heads of zeros."""

    layer: int
    n_heads: int
    factors: Float[Tensor, "head rank d_model"] | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a layer's heads read with: a wide factor for each head or KV head, and a narrow one.

    By kind; a kind whose matrices the architecture lacks is absent. Narrow factors are divided by
    the circuit's norm, NaN for heads of zeros.
    """

    layer: int
    n_heads: int
    wide: Mapping[str, Float[Tensor, "any_head d_model d_head"]]
    narrow: Mapping[str, Float[Tensor, "head d_head rank"]]


def writing(heads: LayerHeads, layer: int) -> Writing:
    """Prepare a layer to be read from: as large as its W_O."""
    factors = None
    if heads.value is not None and heads.output is not None:
        scaled = heads.triangle("value") / _norms(heads, "ov")
        factors = scaled.float() @ heads.output
    return Writing(layer=layer, n_heads=heads.n_heads, factors=factors)


def reading(heads: LayerHeads, layer: int) -> Reading:
    """Prepare a layer to read: holds its W_Q, W_K and W_V, and little besides."""
    wide, narrow = {}, {}
    for kind, (circuit, outer, inner) in _FACTORS.items():
        if getattr(heads, outer) is not None and getattr(heads, inner) is not None:
            wide[kind] = heads.part(outer)
            narrow[kind] = (heads.triangle(inner) / _norms(heads, circuit)).float().mT
    return Reading(layer=layer, n_heads=heads.n_heads, wide=wide, narrow=narrow)


def compositions(reader: Reading, writer: Writing) -> Float[Tensor, "kind reading writing"]:
    """Composition scores of all pairs of two layers' heads, NaN where undefined, in float64.

    `kind` runs over KINDS. Products are of float32: scores are off by less than 1e-6.
    """
    shape = (len(KINDS), reader.n_heads, writer.n_heads)
    scores = torch.full(shape, torch.nan, dtype=torch.float64)
    if writer.factors is None:
        return scores
    rows = writer.factors.flatten(0, 1)
    for index, kind in enumerate(KINDS):
        if kind not in reader.wide:
            continue
        wide, narrow = reader.wide[kind], reader.narrow[kind]
        group = reader.n_heads // len(wide)
        for kv_head, matrix in enumerate(wide):
            met = rows @ matrix
            for head in range(kv_head * group, (kv_head + 1) * group):
                product = (met @ narrow[head]).unflatten(0, (writer.n_heads, -1))
                scores[index, head] = torch.linalg.matrix_norm(product)
    return scores


class Strongest:
    """The `n` strongest compositions of every head with earlier and with later heads, by kind.

    Pairs of layers may come in any order, once each; only what is kept is held. Of equal scores
    those with lower layers and heads are kept.
    """

    def __init__(self, n_layers: int, n_heads: int, n: int) -> None:
        """Begin with nothing."""
        self._n_heads = n_heads
        self._earlier = _Largest(n_layers, n_heads, n)
        self._later = _Largest(n_layers, n_heads, n)

    def add(self, reader: Reading, writer: Writing) -> None:
        """Score two layers.

        Raises:
            ValueError: If the layer that reads is not the later one.
        """
        if writer.layer >= reader.layer:
            raise ValueError(f"layer {reader.layer} reads nothing that layer {writer.layer} writes")
        scores = compositions(reader, writer).numpy()
        self._earlier.add(reader.layer, writer.layer, scores)
        self._later.add(writer.layer, reader.layer, scores.swapaxes(1, 2))

    def scores(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Each head's largest composition with an earlier head, by name of the metric.

        NaN in layer 0.
        """
        values = torch.from_numpy(self._earlier.values)
        return {
            name: metric.compute(one)
            for (name, metric), one in zip(COMPOSITION_METRICS.items(), values, strict=True)
        }

    def table(self) -> pa.Table:
        """What was kept from either side, once each, by kind and head."""
        kind, reads, writes, value = self._earlier.entries()
        kind_2, writes_2, reads_2, value_2 = self._later.entries()
        found = np.stack(
            [np.append(kind, kind_2), np.append(reads, reads_2), np.append(writes, writes_2)]
        )
        (kind, reads, writes), first = np.unique(found, axis=1, return_index=True)
        return pa.table(
            {
                "kind": np.array(KINDS)[kind],
                "layer": reads // self._n_heads,
                "head": reads % self._n_heads,
                "from_layer": writes // self._n_heads,
                "from_head": writes % self._n_heads,
                "value": np.append(value, value_2)[first],
            },
            schema=COMPOSITIONS,
        )


class _Largest:
    """A running top for every kind and head; heads are numbered through all layers."""

    def __init__(self, n_layers: int, n_heads: int, n: int) -> None:
        shape = (len(KINDS), n_layers, n_heads, n)
        self.values = np.full(shape, np.nan)
        self._others = np.full(shape, n_layers * n_heads)

    def add(self, layer: int, other: int, scores: NDArray[np.float64]) -> None:
        n_others = scores.shape[2]
        others = np.broadcast_to(other * n_others + np.arange(n_others), scores.shape)
        values = np.concatenate([self.values[:, layer], scores], axis=2)
        others = np.concatenate([self._others[:, layer], others], axis=2)
        # NaN sorts last, so what is undefined is kept only where nothing else is there.
        best = np.lexsort((others, -values), axis=2)[..., : self.values.shape[3]]
        self.values[:, layer] = np.take_along_axis(values, best, axis=2)
        self._others[:, layer] = np.take_along_axis(others, best, axis=2)

    def entries(self) -> tuple[NDArray[Any], ...]:
        """Kind, head, other head and value of all that is defined."""
        kind, layer, head, place = np.nonzero(~np.isnan(self.values))
        own = layer * self.values.shape[2] + head
        at = (kind, layer, head, place)
        return kind, own, self._others[at], self.values[at]


def _norms(heads: LayerHeads, circuit: Circuit) -> Float[Tensor, "head one one"]:
    """NaN for heads of zeros, so that all their scores are."""
    norms = torch.linalg.matrix_norm(heads.core(circuit), keepdim=True)
    return norms.where(norms > 0, torch.nan)
