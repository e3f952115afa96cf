"""Metrics of attention patterns: one forward pass a probe, reduced layer by layer as it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results
from catalog.errors import ModelError
from ingest.metrics import PATTERN_GROUP_METRICS, PATTERN_METRICS, Declared, Sequences, Sums
from ingest.probes import sequences
from ingest.probes.sequences import Encoded, SequenceProbe, Vocabulary
from ingest.progress import Progress
from ingest.readers.attention import attention_modules, observing, prove
from ingest.readers.loading import LoadedModel
from ingest.streaming import Workroom
from ingest.suites._memory import if_it_fits
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs

SUITE = "patterns"
_MAX_PATTERN_BYTES = 1 << 26
"""Of one layer's patterns: small enough to stay near the processor's caches."""
_MAX_KEPT_BYTES = 1 << 30
"""Of what group metrics keep of all layers at once, where a group takes several batches."""


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
        names |= set(PATTERN_GROUP_METRICS)
        declared: list[Declared[Any]] = [*PATTERN_METRICS.values(), *PATTERN_GROUP_METRICS.values()]
        return specs((metric for metric in declared if metric.name in names), SUITE)

    def open(self, model: OpenModel) -> None:
        _ = model.loaded

    def measure(
        self, model: OpenModel, probes: Sequence[str], _room: Workroom, progress: Progress
    ) -> Measured:
        loaded = model.loaded
        progress.stage("proving that attention is read as the model computes it")
        prove(loaded.model, loaded.name)
        measured = {name: _measure(loaded, self._encoded[name], name, progress) for name in probes}
        measurements = [
            Measurement(metric=metric, probe=name, values=as_rows(values))
            for name, sums in measured.items()
            for metric, values in sums.scores().items()
        ]
        return Measured(
            results=Results(measurements=measurements),
            undefined=_without_heads(loaded) | _undefined(measured),
        )


def plan(config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> PatternPlan | None:
    """The shipped probes, a user's besides them, or the user's alone."""
    # What MPT calls its context; a longer sequence would break its ALiBi.
    context = vocabulary.context or getattr(config, "max_seq_len", None)
    vocabulary = replace(vocabulary, context=context)
    own = [sequences.from_file(inputs.probe)] if inputs.probe else []
    if inputs.only and not own:
        return None
    return PatternPlan(own if inputs.only else [*sequences.shipped(vocabulary), *own], vocabulary)


def _without_heads(loaded: LoadedModel) -> dict[str, str]:
    with_heads = attention_modules(loaded.model)
    return {
        f"L{layer}": "this layer has no softmax attention"
        for layer in range(loaded.config.num_hidden_layers)
        if layer not in with_heads
    }


def _undefined(measured: Mapping[str, "_Sums"]) -> dict[str, str]:
    """Why heads, all heads of a layer, or all heads in a metric have no score, and where."""
    where: dict[tuple[str, str], list[str]] = {}
    for probe, sums in measured.items():
        for layer, heads in enumerate(sums.damaged):
            damaged = (
                [f"L{layer}"] if heads.all() else [f"L{layer}H{int(h)}" for h in heads.nonzero()]
            )
            for place in damaged:
                where.setdefault((place, "NaN in its attention"), []).append(probe)
        for metric, reason in sums.left_out.items():
            where.setdefault((metric, reason), []).append(probe)
    told: dict[str, list[str]] = {}
    for (place, reason), probes in where.items():
        told.setdefault(place, []).append(f"{reason} on {', '.join(probes)}")
    return {place: "; ".join(reasons) for place, reasons in told.items()}


def _defined(encoded: Encoded) -> list[str]:
    return [
        name
        for name, metric in PATTERN_METRICS.items()
        if encoded.period is not None or not metric.needs_period
    ]


class _Sums:
    """One probe's scores in the making.

    A batch that the memory does not hold is begun again in halves, when some layers have already
    seen all of it: each layer therefore knows how many sequences of the group it has, and takes
    from what it sees only those after them.
    """

    def __init__(self, model: PreTrainedModel, encoded: Encoded) -> None:
        """Nothing is seen yet."""
        self._layers = list(attention_modules(model))
        shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
        self.damaged = torch.zeros(shape, dtype=torch.bool)
        self.left_out: dict[str, str] = {}
        self._encoded = encoded
        self._names = _defined(encoded)
        every = (*self._names, *PATTERN_GROUP_METRICS)
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name in every}
        self._counts = {name: torch.zeros(shape, dtype=torch.float64) for name in every}

    def begin_group(self, length: int, count: int, batch: int) -> None:
        """Sequences of one length follow, `count` of them, at most `batch` at a time."""
        self._count, self._start = count, 0
        self._done = dict.fromkeys(self._layers, 0)
        self._kept: dict[tuple[int, str], Sums] = {}
        size = self.damaged.numel() * length**2 * 8
        # A group in one batch is finished layer by layer; else sums of all layers have to be kept.
        if batch < count and size > _MAX_KEPT_BYTES:
            reason = f"the mean over sequences of {length} tokens would take {size / 2**30:.1f} GiB"
            self.left_out |= dict.fromkeys(PATTERN_GROUP_METRICS, reason)

    def begin_batch(self, start: int) -> None:
        """The sequences of the group from `start` on follow."""
        self._start = start

    def observe(
        self,
        layer: int,
        patterns: Float[Tensor, "batch head query key"],
        allowed: Int[Tensor, " query"],
    ) -> None:
        """Add a layer's patterns: all of them or, where the memory does not suffice, none."""
        patterns = patterns[self._done[layer] - self._start :]
        if not len(patterns):
            return
        encoded = self._encoded
        facts = Sequences(bos=encoded.bos, period=encoded.period, allowed=allowed.double())
        values = {
            name: _sum(PATTERN_METRICS[name].compute(patterns, facts)) for name in self._names
        }
        groups = {
            name: metric.compute(patterns, facts)
            for name, metric in PATTERN_GROUP_METRICS.items()
            if name not in self.left_out and self._count > 1
        }
        is_damaged = ~patterns.sum(dim=(0, 2, 3)).isfinite().cpu()
        for name, (total, count) in values.items():
            self._sums[name][layer] += total
            self._counts[name][layer] += count
        self.damaged[layer] |= is_damaged
        self._done[layer] += len(patterns)
        for name, sums in groups.items():
            self._add(layer, name, sums)

    def _add(self, layer: int, name: str, sums: Sums) -> None:
        sums = {key: value.cpu() for key, value in sums.items()}
        kept = self._kept.pop((layer, name), {})
        for key, value in kept.items():
            sums[key] += value
        if self._done[layer] < self._count:
            self._kept[layer, name] = sums
            return
        finish = PATTERN_GROUP_METRICS[name].finish
        assert finish is not None  # noqa: S101 - narrows the type
        numerator, denominator = finish(sums, self._count)
        self._sums[name][layer] += numerator
        self._counts[name][layer] += denominator

    def scores(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Every metric's; NaN where it is undefined."""
        # No defined position, or no heads in the layer: 0 / 0, which is NaN.
        scores = {name: self._sums[name] / self._counts[name] for name in self._sums}
        for name, values in scores.items():
            values[self.damaged] = torch.nan
            if name in self.left_out:
                values[:] = torch.nan
        return scores


def _sum(values: Float[Tensor, "batch head position"]) -> tuple[Tensor, Tensor]:
    """Sum and number of defined values per head."""
    defined = ~values.isnan()
    return values.double().nansum(dim=(0, 2)).cpu(), defined.sum(dim=(0, 2)).cpu()


def _measure(loaded: LoadedModel, encoded: Encoded, probe: str, progress: Progress) -> _Sums:
    """Every metric on one probe.

    Raises:
        ModelError: If the memory does not even hold one sequence.
    """
    sums = _Sums(loaded.model, encoded)
    heads: int = loaded.config.num_attention_heads
    progress.steps(f"patterns on {probe}", len(encoded.tokens))
    with torch.inference_mode(), observing(loaded.model, sums.observe):
        # Of one length together: nothing is padded, so nothing has to be masked.
        for length, same in groupby(sorted(encoded.tokens, key=len), key=len):
            group = list(same)
            size = max(1, _MAX_PATTERN_BYTES // (heads * length * length * 4))
            sums.begin_group(length, len(group), size)
            start = 0
            while start < len(group):
                batch = group[start : start + size]
                sums.begin_batch(start)
                if _fits(loaded, batch):
                    start += len(batch)
                    for _ in batch:
                        progress.advance()
                    continue
                size = len(batch) // 2
                if not size:
                    raise ModelError(
                        f"the memory does not hold {loaded.name} on one sequence of {length} "
                        f"tokens ({probe})"
                    )
                progress.note(
                    f"out of memory on {len(batch)} sequences of {length} tokens ({probe}): going "
                    f"on with {size} at a time, which changes no score"
                )
    return sums


def _fits(loaded: LoadedModel, batch: list[list[int]]) -> bool:
    """Run the model; False where that takes more memory than there is."""
    tokens = torch.tensor(batch, device=loaded.device)
    run = partial(loaded.model.base_model, tokens, use_cache=False)
    return if_it_fits(run, loaded.device) is not None
