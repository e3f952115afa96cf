"""Metrics of attention patterns: one forward pass a probe, reduced layer by layer as it runs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results
from catalog.errors import ModelError
from ingest.metrics import PATTERN_METRICS, Sequences
from ingest.probes import sequences
from ingest.probes.sequences import Encoded, SequenceProbe, Vocabulary
from ingest.progress import Progress
from ingest.readers.architectures import layout
from ingest.readers.attention import observing, prove
from ingest.readers.loading import LoadedModel
from ingest.streaming import Workroom
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows

SUITE = "patterns"
_MAX_PATTERN_BYTES = 1 << 26
"""Of one layer's patterns: small enough to stay near the processor's caches."""


class PatternPlan:
    """Which probes, and which metrics are defined on each."""

    suite = SUITE

    def __init__(self, probes: Sequence[SequenceProbe], vocabulary: Vocabulary) -> None:
        """Encode every probe, so that a bad one is found before the model is loaded."""
        self.probes: Mapping[str, ProbeSpec] = {probe.spec.name: probe.spec for probe in probes}
        self._encoded = {probe.spec.name: probe.encode(vocabulary) for probe in probes}
        self._ignored = {probe.spec.name: list(probe.ignored) for probe in probes if probe.ignored}

    def params(self, probes: Sequence[str]) -> dict[str, Any]:
        return {
            "sequences": {name: len(self._encoded[name].tokens) for name in probes},
            "tokens": {name: sum(map(len, self._encoded[name].tokens)) for name in probes},
        }

    def notes(self, probes: Sequence[str]) -> dict[str, Any]:
        ignored = {name: what for name, what in self._ignored.items() if name in probes}
        return {"not_measured": ignored} if ignored else {}

    def metrics(self, probes: Sequence[str]) -> list[MetricSpec]:
        names = {name for probe in probes for name in _defined(self._encoded[probe])}
        return [
            MetricSpec(
                family=metric.name,
                version=metric.version,
                suite=SUITE,
                unit=metric.unit,
                lower=metric.range[0],
                upper=metric.range[1],
                description=metric.description,
                source=metric.source,
            )
            for metric in PATTERN_METRICS.values()
            if metric.name in names
        ]

    def open(self, model: OpenModel) -> None:
        _ = model.loaded

    def measure(
        self, model: OpenModel, probes: Sequence[str], _room: Workroom, progress: Progress
    ) -> Measured:
        loaded = model.loaded
        progress.stage("proving that attention is read as the model computes it")
        prove(loaded.model, loaded.name)
        measurements = []
        for name in probes:
            scores = _measure(loaded, self._encoded[name], name, progress)
            measurements += [
                Measurement(metric=metric, probe=name, values=as_rows(values))
                for metric, values in scores.items()
            ]
        return Measured(results=Results(measurements=measurements))


def plan(config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> PatternPlan | None:
    """The shipped probes, a user's besides them, or the user's alone.

    Raises:
        ModelError: If the architecture's attention cannot be observed.
    """
    own = [sequences.from_file(inputs.probe)] if inputs.probe else []
    if inputs.only and not own:
        return None
    if not layout(config.model_type, "the model").is_observable:
        raise ModelError(
            f"patterns: the attention of {config.model_type} cannot be observed, since it does not "
            "go through transformers' attention interface; its weights can be read by the other "
            "suites"
        )
    return PatternPlan(own if inputs.only else [*sequences.shipped(vocabulary), *own], vocabulary)


def _defined(encoded: Encoded) -> list[str]:
    return [
        name
        for name, metric in PATTERN_METRICS.items()
        if encoded.period is not None or not metric.needs_period
    ]


def _measure(
    loaded: LoadedModel, encoded: Encoded, probe: str, progress: Progress
) -> dict[str, Float[Tensor, "layer head"]]:
    config = loaded.config
    shape = (config.num_hidden_layers, config.num_attention_heads)
    names = _defined(encoded)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    counts = {name: torch.zeros(shape, dtype=torch.float64) for name in names}

    def observe(
        layer: int,
        patterns: Float[Tensor, "batch head query key"],
        allowed: Float[Tensor, " query"],
    ) -> None:
        if not torch.isfinite(patterns).all():
            raise ModelError(f"{loaded.name} has NaN in the attention of layer {layer} on {probe}")
        facts = Sequences(bos=encoded.bos, period=encoded.period, allowed=allowed.double())
        exact = patterns.double()
        for name in names:
            values = PATTERN_METRICS[name].compute(exact, facts)
            defined = ~values.isnan()
            sums[name][layer] += values.nansum(dim=(0, 2)).cpu()
            counts[name][layer] += defined.sum(dim=(0, 2)).cpu()

    batches = list(_batches(encoded.tokens, shape[1]))
    progress.steps(f"patterns on {probe}", len(batches))
    with torch.inference_mode(), observing(loaded.model, observe):
        for batch in batches:
            loaded.model.base_model(torch.tensor(batch, device=loaded.device), use_cache=False)
            progress.advance()
    # No defined position: 0 / 0, which is NaN, which is undefined.
    return {name: sums[name] / counts[name] for name in names}


def _batches(tokens: Sequence[list[int]], n_heads: int) -> Iterator[list[list[int]]]:
    """Sequences of one length together: nothing is padded, so nothing has to be masked."""
    for length, group in groupby(sorted(tokens, key=len), key=len):
        together = list(group)
        size = max(1, _MAX_PATTERN_BYTES // (n_heads * length * length * 4))
        for start in range(0, len(together), size):
            yield together[start : start + size]
