"""What a head's matrices are by themselves: norms, spectra, copying, composition, signatures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
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
from ingest.readers.weights import PARTS, HeadReader
from ingest.signatures import Anchors, anchor_tokens, anchor_words
from ingest.streaming import Kept, Workroom
from ingest.suites._compositions import STRONGEST, strongest
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs, undefined_of

SUITE = "weights"
PROBE = "weights"
POSITIONS = 512
"""Learned positions looked at: patterns are as large as their square."""
_DEPTH = 25
_NO_WRITER = "it reads no earlier head whose output is known"
_NO_DIRECTION = "what it is measured by is zero"
_SCALARS: dict[str, Declared[Any]] = COPYING_METRICS | WEIGHT_METRICS | COMPOSITION_METRICS
_ALL: dict[str, Declared[Any]] = _SCALARS | VECTOR_METRICS


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
        defined = {name: ~values.isnan() for name, values in scores.items()} | {
            name: torch.stack([~kept.tensors[name].isnan().any(dim=1) for kept in layers])
            for name in VECTOR_METRICS
        }
        return Measured(
            results=Results(
                measurements=[
                    Measurement(metric=name, probe=PROBE, values=as_rows(values))
                    for name, values in scores.items()
                ],
                vectors=vectors,
                compositions=compositions.table,
            ),
            undefined=_reasons(defined, undefined_of(layers)),
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
        silence = {} if heads.absent else silent(heads)
        for head, reason in silence.items():
            if head not in reasons:
                undefined |= {f"L{layer}H{head} {name}": reason for name in COPYING_METRICS}
        undefined |= _lacking(layer, heads, self._absent(layer))
        return Kept(tensors=kept | {"undefined": bad}, undefined=undefined)

    def _absent(self, layer: int) -> dict[str, str]:
        """What metrics may need besides heads, and why it is not there."""
        absent = {}
        if self._positions is None:
            absent["positions"] = "the model has no learned positions"
        if not len(self._anchor_index):
            absent["anchors"] = "none of the words to compare is one token of the model"
        elif not torch.isfinite(self._sources(layer)).all():
            absent["anchors"] = "NaN or infinite values in the first layer's MLP"
        return absent

    def _sources(self, layer: int) -> Tensor:
        return self._anchored if layer == 0 else self._anchored_after_mlp

    def _matrices(self, layer: int) -> ModelMatrices:
        anchors = Anchors(
            index=self._anchor_index, sources=self._sources(layer), outputs=self._anchor_outputs
        )
        positions = self._positions
        return ModelMatrices(
            gram=self._gram,
            positions=None
            if positions is None
            else self._reader.normalised(layer, positions[:POSITIONS]),
            scaling=self._reader.scaling(layer),
            anchors=None if "anchors" in self._absent(layer) else anchors,
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


def _lacking(layer: int, heads: LayerHeads, absent: Mapping[str, str]) -> dict[str, str]:
    """Why metrics are of no head of a layer (`L3 ov_norm`), or of these heads nothing is (`L3`)."""
    if len(heads.absent) == len(PARTS):
        return {f"L{layer}": next(iter(heads.absent.values()))}
    why = {**absent, **heads.absent}
    found = {}
    for name, metric in _ALL.items():
        reason = next((why[need] for need in metric.needs if need in why), None)
        if reason:
            found[f"L{layer} {name}"] = reason
    return found


def _reasons(
    defined: Mapping[str, Bool[Tensor, "layer head"]], found: Mapping[str, str]
) -> dict[str, str]:
    """Why scores are undefined: all that was found in layers, and what is seen of all of them.

    A reason is a metric's (`ov_norm`), or one of its in a layer or head (`L3 ov_norm`), or a
    layer's or head's in all metrics (`L3`).
    """
    told = dict(found)
    for name, values in defined.items():
        for layer, heads in enumerate(values):
            if f"L{layer}" in told or f"L{layer} {name}" in told:
                continue
            if name in COMPOSITION_METRICS and not heads.any():
                told[f"L{layer} {name}"] = _NO_WRITER if layer else "no layer is before it"
                continue
            for head in (~heads).nonzero().flatten().tolist():
                if f"L{layer}H{head}" not in told:
                    told.setdefault(f"L{layer}H{head} {name}", _NO_DIRECTION)
        layers = [f"L{layer}" for layer in range(len(values))]
        places = [f"{layer} {name}" for layer in layers if layer not in told]
        reasons = {told.get(place) for place in places}
        if len(reasons) == 1 and None not in reasons:
            told = {place: why for place, why in told.items() if place not in places}
            told[name] = str(reasons.pop())
    return told


def _lists(values: Float[Tensor, "head n"]) -> list[list[float] | None]:
    """Rows as the catalog takes them: None where anything in a row is undefined."""
    defined = ~values.isnan().any(dim=1)
    return [row if ok else None for row, ok in zip(values.tolist(), defined.tolist(), strict=True)]
