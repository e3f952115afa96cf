"""Metrics of attention patterns: one forward pass a probe, reduced as it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results
from ingest.metrics import (
    CLASS_METRICS,
    OUTPUT_METRICS,
    PATTERN_GROUP_METRICS,
    PATTERN_METRICS,
    RETRIEVAL_METRICS,
)
from ingest.probes import files
from ingest.probes.sequences import SequenceProbe, Vocabulary
from ingest.probes.shipped import shipped
from ingest.progress import Progress
from ingest.readers.attention import attention_modules, prove
from ingest.readers.loading import LoadedModel
from ingest.readers.outputs import prove_outputs
from ingest.streaming import Workroom
from ingest.suites._passes import PatternSums, defined, measure
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs

SUITE = "patterns"


class PatternPlan:
    """Which probes, and which metrics are defined on each."""

    suite = SUITE

    def __init__(self, probes: Sequence[SequenceProbe], vocabulary: Vocabulary) -> None:
        """Encode every probe, so that a bad one is found before the model is loaded."""
        self.probes: Mapping[str, ProbeSpec] = {probe.spec.name: probe.spec for probe in probes}
        self._encoded = {probe.spec.name: probe.encode(vocabulary) for probe in probes}

    def params(self, probes: Sequence[str]) -> dict[str, Any]:
        return {
            "sequences": {name: len(self._encoded[name].tokens) for name in probes},
            "tokens": {name: sum(map(len, self._encoded[name].tokens)) for name in probes},
        }

    def notes(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {}

    def metrics(self, probes: Sequence[str]) -> list[MetricSpec]:
        encoded = [self._encoded[probe] for probe in probes]
        names = {name for one in encoded for name in defined(one)}
        found = specs((m for name, m in PATTERN_METRICS.items() if name in names), SUITE)
        found += specs(PATTERN_GROUP_METRICS.values(), SUITE)
        found += specs(OUTPUT_METRICS.values(), SUITE)
        if any(one.needles for one in encoded):
            found += specs(RETRIEVAL_METRICS.values(), SUITE)
        for token_class in sorted({name for one in encoded for name in one.classes}):
            found += specs(CLASS_METRICS.values(), SUITE, parameter=token_class)
        return found

    def open(self, model: OpenModel) -> None:
        _ = model.loaded

    def measure(
        self, model: OpenModel, probes: Sequence[str], _room: Workroom, progress: Progress
    ) -> Measured:
        loaded = model.loaded
        progress.stage("proving that attention is read as the model computes it")
        prove(loaded.model, loaded.name)
        progress.stage("proving that what heads write adds up to what the model computes")
        prove_outputs(loaded.model, loaded.name)
        measured = {name: measure(loaded, self._encoded[name], name, progress) for name in probes}
        measurements = [
            Measurement(metric=metric, probe=name, values=as_rows(values))
            for name, sums in measured.items()
            for metric, values in sums.scores().items()
        ]
        return Measured(
            results=Results(measurements=measurements),
            undefined=_without_heads(loaded) | _undefined(measured),
            notes={name: sums.notes for name, sums in measured.items() if sums.notes},
        )


def plan(_config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> PatternPlan | None:
    """The shipped probes, a user's besides them, or the user's alone."""
    classes = inputs.token_classes
    own = [files.from_file(inputs.probe, classes)] if inputs.probe else []
    if inputs.only and not own:
        return None
    probes = own if inputs.only else [*shipped(vocabulary, classes), *own]
    return PatternPlan(probes, vocabulary)


def _without_heads(loaded: LoadedModel) -> dict[str, str]:
    with_heads = attention_modules(loaded.model)
    return {
        f"L{layer}": "this layer has no softmax attention"
        for layer in range(loaded.config.num_hidden_layers)
        if layer not in with_heads
    }


def _undefined(measured: Mapping[str, PatternSums]) -> dict[str, str]:
    """Why heads, all heads of a layer, or all heads in a metric have no score, and where."""
    where: dict[tuple[str, str], list[str]] = {}
    for probe, sums in measured.items():
        for place, reason in sums.undefined.items():
            where.setdefault((place, reason), []).append(probe)
    told: dict[str, list[str]] = {}
    for (place, reason), probes in where.items():
        told.setdefault(place, []).append(f"{reason} on {', '.join(probes)}")
    return {place: "; ".join(reasons) for place, reasons in told.items()}
