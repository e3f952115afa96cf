"""What a head's matrices are by themselves: norms, spectra, copying, composition, signatures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results, VectorMeasurement
from ingest.heads import LayerHeads, silent, split_finite
from ingest.metrics import (
    COMPOSITION_METRICS,
    COPYING_METRICS,
    VECTOR_METRICS,
    WEIGHT_METRICS,
    Declared,
    ModelMatrices,
    gram_matrix,
    sample_tokens,
)
from ingest.metrics._sample import SEED
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.ranks import Pairs, Unembedding, target_ranks
from ingest.readers.weights import HeadReader
from ingest.signatures import Anchors, anchor_tokens, anchor_words
from ingest.streaming import Kept, Workroom
from ingest.suites._compositions import STRONGEST, strongest
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs, undefined_of

SUITE = "weights"
PROBE = "weights"
POSITIONS = 512
"""Learned positions looked at: patterns are as large as their square."""
_DEPTH = 25
_SCALARS: dict[str, Declared[Any]] = COPYING_METRICS | WEIGHT_METRICS | COMPOSITION_METRICS


class WeightPlan:
    """Every metric of a head's matrices."""

    suite = SUITE

    def __init__(self, vocabulary: Vocabulary, *, first_mlp: bool) -> None:
        """Draw the tokens that copying is measured on, and find the words of signatures."""
        self._first_mlp = first_mlp
        self._sample = sample_tokens(vocabulary.ordinary_tokens)
        self._anchors = anchor_tokens(vocabulary.encode)
        content = json.dumps([SEED, len(self._sample), anchor_words()])
        digest = hashlib.sha256(content.encode()).hexdigest()
        self.probes: Mapping[str, ProbeSpec] = {
            PROBE: ProbeSpec(
                name=PROBE,
                kind=PROBE,
                content_hash=f"sha256:{digest}",
                seed=SEED,
                description=(
                    "no input: the matrices themselves; copying on "
                    f"{len(self._sample)} random tokens, signatures on common words"
                ),
            )
        }

    def params(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {
            "first_mlp": self._first_mlp,
            "copied_tokens": len(self._sample),
            "anchors": len(self._anchors),
            "compositions_per_head": STRONGEST,
            "positions": POSITIONS,
        }

    def notes(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {}

    def metrics(self, _probes: Sequence[str]) -> list[MetricSpec]:
        return specs(_SCALARS.values(), SUITE) + specs(
            VECTOR_METRICS.values(), SUITE, are_vectors=True
        )

    def open(self, model: OpenModel) -> None:
        model.reader.verify(first_mlp=self._first_mlp)

    def measure(
        self, model: OpenModel, _probes: Sequence[str], room: Workroom, progress: Progress
    ) -> Measured:
        reader = model.reader
        progress.stage("reading the vocabulary")
        work = _Layers(reader, self._sample, self._anchors, model, first_mlp=self._first_mlp)
        layers = room.layers("weights", reader.n_layers, work.measure, progress)
        compositions = strongest(reader, room, progress)
        scores = {
            name: torch.stack([kept.tensors[name] for kept in layers])
            for name in COPYING_METRICS | WEIGHT_METRICS
        } | compositions.scores
        bad = torch.stack([kept.tensors["undefined"] for kept in layers])
        for name in COMPOSITION_METRICS:
            scores[name][bad] = torch.nan
        vectors = [
            VectorMeasurement(
                metric=name, probe=PROBE, values=[_lists(kept.tensors[name]) for kept in layers]
            )
            for name in VECTOR_METRICS
        ]
        return Measured(
            results=Results(
                measurements=[
                    Measurement(metric=name, probe=PROBE, values=as_rows(values))
                    for name, values in scores.items()
                ],
                vectors=vectors,
                compositions=compositions.table,
            ),
            undefined=undefined_of(layers),
        )


def plan(_config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> WeightPlan | None:
    """Weights need no input; they are not what `--only` asks for."""
    return None if inputs.only else WeightPlan(vocabulary, first_mlp=inputs.first_mlp)


class _Layers:
    """What all layers share, read once, and the work on one layer."""

    def __init__(
        self,
        reader: HeadReader,
        sample: Tensor,
        anchors: Mapping[int, int],
        model: OpenModel,
        *,
        first_mlp: bool,
    ) -> None:
        self._reader, device = reader, reader.device
        self._first_mlp = first_mlp
        unembedding = reader.unembedding()
        self._sample = reader.embedding(sample)
        anchored = torch.tensor(list(anchors.values()), dtype=torch.long)
        self._anchored = reader.embedding(anchored)
        self._anchor_index = torch.tensor(list(anchors), dtype=torch.long, device=device)
        self._anchor_outputs = unembedding[anchored.to(device)].float()
        self._gram = gram_matrix(unembedding, reader.embedding())
        self._unembedding = Unembedding(unembedding, screening=model.screening)
        order = torch.arange(len(sample), device=device)
        self._pairs = Pairs(source=order, target=sample.to(device))
        self._positions = reader.positions()

    @cached_property
    def _anchored_after_mlp(self) -> Tensor:
        return self._reader.first_mlp(self._anchored) if self._first_mlp else self._anchored

    def measure(self, layer: int) -> Kept:
        heads, reasons = split_finite(self._reader.heads(layer))
        bad = torch.tensor([head in reasons for head in range(heads.n_heads)])
        model = self._matrices(layer)
        kept = {name: metric.compute(heads, model) for name, metric in WEIGHT_METRICS.items()}
        kept |= self._copying(heads)
        kept |= {
            name: metric.compute(heads, model).float() for name, metric in VECTOR_METRICS.items()
        }
        for values in kept.values():
            values[bad] = torch.nan
        undefined = {f"L{layer}H{head}": reason for head, reason in reasons.items()}
        undefined |= {f"L{layer} {part}": reason for part, reason in heads.absent.items()}
        return Kept(tensors=kept | {"undefined": bad}, undefined=undefined)

    def _matrices(self, layer: int) -> ModelMatrices:
        sources = self._anchored if layer == 0 else self._anchored_after_mlp
        anchors = Anchors(index=self._anchor_index, sources=sources, outputs=self._anchor_outputs)
        positions = self._positions
        return ModelMatrices(
            gram=self._gram,
            positions=None
            if positions is None
            else self._reader.normalised(layer, positions[:POSITIONS]),
            scaling=self._reader.scaling(layer),
            anchors=anchors if torch.isfinite(sources).all() else None,
        )

    def _copying(self, heads: LayerHeads) -> dict[str, Tensor]:
        if heads.value is None or heads.output is None:
            nothing = torch.full((heads.n_heads,), torch.nan, dtype=torch.float64)
            return {name: nothing.clone() for name in COPYING_METRICS}
        ranks = target_ranks(
            self._sample, heads.value, heads.output, self._unembedding, self._pairs, depth=_DEPTH
        )
        values = {
            name: metric.compute(ranks.negated if metric.of_negated else ranks.plain, _DEPTH)
            .mean(dim=1)
            .cpu()
            for name, metric in COPYING_METRICS.items()
        }
        for one in values.values():
            one[list(silent(heads))] = torch.nan
        return values


def _lists(values: Float[Tensor, "head n"]) -> list[list[float] | None]:
    """Rows as the catalog takes them: None where anything in a row is undefined."""
    defined = ~values.isnan().any(dim=1)
    return [row if ok else None for row, ok in zip(values.tolist(), defined.tolist(), strict=True)]
