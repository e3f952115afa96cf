"""Dynamic relation scores: of what heads write at the end of prompts, in a run of the model."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results
from catalog.errors import ModelError
from ingest.heads import silent
from ingest.metrics import DYNAMIC_METRICS
from ingest.probes import relations
from ingest.probes.prompts import TEMPLATES, Prompt, PromptedPairs, Template
from ingest.probes.relations import MIN_USABLE, RelationSet, too_few
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.ranks import Pairs, Unembedding, output_ranks
from ingest.readers.endings import LATENT, Mixed, PromptRunner
from ingest.readers.loading import LoadedModel
from ingest.readers.weights import HeadReader
from ingest.streaming import Workroom
from ingest.suites._memory import if_it_fits, sized
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs
from ingest.suites.relations import relation_sets

SUITE = "dynamic"
_MAX_TOKENS = 4_096
"""Of a batch: enough to keep processors busy."""
_MAX_KEPT_BYTES = 1 << 29
"""Of what all heads of all layers hold at once; more prompts are run and ranked in parts."""


class DynamicPlan:
    """Which relations, under which templates, a model's tokenizer can use."""

    suite = SUITE

    def __init__(self, sets: Sequence[RelationSet], vocabulary: Vocabulary) -> None:
        """Tokenize every prompt.

        Raises:
            InputError: If a user's set has no relation with enough usable pairs.
            ModelError: If the tokenizer cuts too many sources otherwise in every template.
        """
        self.probes: dict[str, ProbeSpec] = {}
        self._asked: dict[str, list[PromptedPairs]] = {}
        self._skipped: dict[str, dict[str, str]] = {}
        self._set_of: dict[str, str] = {}
        templates = [Template(name, vocabulary) for name in TEMPLATES]
        lost: list[str] = []
        for one in sets:
            usable, self._skipped[one.name] = relations.usable_of(one, vocabulary.encode)
            for template in templates:
                spec = template.spec(one)
                found = [template.prompted(pairs) for pairs in usable]
                kept = [asked for asked in found if len(asked.targets) >= MIN_USABLE]
                self._skipped[spec.name] = {
                    asked.pairs.relation.name: _too_few(asked)
                    for asked in found
                    if len(asked.targets) < MIN_USABLE
                }
                lost += [f"{why} ({name})" for name, why in self._skipped[spec.name].items()]
                if kept:
                    self.probes[spec.name] = spec
                    self._asked[spec.name] = kept
                    self._set_of[spec.name] = one.name
        if lost and not self.probes:
            raise ModelError(
                "dynamic relation scores need prompts in which a relation's source is the one "
                f"token that it is alone, and this tokenizer writes too few of them: {lost[0]}"
            )

    def params(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {"minimum_pairs": MIN_USABLE}

    def notes(self, probes: Sequence[str]) -> dict[str, Any]:
        names = [*dict.fromkeys(self._set_of[probe] for probe in probes), *probes]
        return {
            "skipped": {name: self._skipped[name] for name in names if self._skipped[name]},
            "usable_pairs": {
                name: {asked.pairs.relation.name: len(asked.targets) for asked in self._asked[name]}
                for name in probes
            },
            "dropped_prompts": {
                name: dropped for name in probes if (dropped := _dropped(self._asked[name]))
            },
        }

    def metrics(self, probes: Sequence[str]) -> list[MetricSpec]:
        names = {asked.pairs.relation.name for probe in probes for asked in self._asked[probe]}
        return [
            spec
            for name in sorted(names)
            for spec in specs(DYNAMIC_METRICS.values(), SUITE, parameter=name)
        ]

    def open(self, model: OpenModel) -> None:
        _ = model.loaded

    def measure(
        self, model: OpenModel, probes: Sequence[str], _room: Workroom, progress: Progress
    ) -> Measured:
        chosen = [(probe, asked) for probe in probes for asked in self._asked[probe]]
        hits = _Hits(model, [asked for _, asked in chosen])
        hits.measure(progress)
        measurements = [
            Measurement(
                metric=f"{metric}[{asked.pairs.relation.name}]", probe=probe, values=as_rows(values)
            )
            for metric, scores in hits.scores().items()
            for (probe, asked), values in zip(chosen, scores, strict=True)
        ]
        return Measured(
            results=Results(measurements=measurements),
            undefined=hits.undefined,
            notes=dict.fromkeys(probes, hits.notes) if hits.notes else {},
        )


def plan(config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> DynamicPlan | None:
    """Of the relation sets that are asked for; None where that is none."""
    chosen = relation_sets(config, inputs)
    if not chosen:
        return None
    vocabulary.require_tokenizer(SUITE)
    return DynamicPlan(chosen, vocabulary)


def _too_few(asked: PromptedPairs) -> str:
    why = too_few(len(asked.targets), len(asked.pairs.relation.pairs))
    return f"{why}; the prompt cuts {asked.n_dropped} sources otherwise"


def _dropped(found: Sequence[PromptedPairs]) -> dict[str, int]:
    return {asked.pairs.relation.name: asked.n_dropped for asked in found if asked.n_dropped}


class _Hits:
    """Sums of every metric over the pairs of relations, in the making.

    Many pairs, of several relations, share a prompt: each is run once.
    """

    def __init__(self, model: OpenModel, asked: Sequence[PromptedPairs]) -> None:
        """Nothing is run yet."""
        self._asked = asked
        self._loaded, self._screening = model.loaded, model.screening
        # What the run uses, in its own precision.
        self._reader = HeadReader.of_loaded(self._loaded.model, model.name)
        # Those that begin alike and are as long are neighbours.
        prompts = {prompt for one in asked for prompt in one.prompts}
        self._prompts = sorted(prompts, key=lambda one: (one.before, len(one.rest), one.rest))
        rows = {prompt: row for row, prompt in enumerate(self._prompts)}
        self._source = torch.tensor([rows[prompt] for one in asked for prompt in one.prompts])
        self._target = torch.tensor([target for one in asked for target in one.targets])
        counts = torch.tensor([len(one.targets) for one in asked])
        self._counts = counts
        self._relation = torch.arange(len(asked)).repeat_interleave(counts)
        self._depth = max(one.pairs.relation.k for one in asked)
        shape = (len(asked), self._reader.n_layers, self._reader.sizes.n_heads)
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name in DYNAMIC_METRICS}
        self.undefined: dict[str, str] = {}
        self.notes: list[str] = []
        """What happened on the way, to prompts of all probes together."""

    def scores(self) -> dict[str, Float[Tensor, "relation layer head"]]:
        """Every metric's; NaN where it is undefined."""
        return {name: sums / self._counts[:, None, None] for name, sums in self._sums.items()}

    def measure(self, progress: Progress) -> None:
        """Run all prompts, and rank the targets in what the heads hold at their ends."""
        size = self._reader.sizes
        dtype = self._loaded.model.dtype
        heads = self._reader.n_layers * (size.n_heads + size.n_kv_heads)
        held = heads * size.d_head * dtype.itemsize
        n_parts = math.ceil(len(self._prompts) * held / sized(_MAX_KEPT_BYTES))
        step = math.ceil(len(self._prompts) / n_parts)
        unembedding = Unembedding(self._reader.unembedding(), screening=self._screening)
        for part, start in enumerate(range(0, len(self._prompts), step), start=1):
            told = f"{SUITE}, part {part} of {n_parts}" if n_parts > 1 else SUITE
            prompts = self._prompts[start : start + step]
            mixed, notes = _run(self._loaded, prompts, progress, f"{told}: prompts")
            self.notes += notes
            progress.steps(f"{told}: layers", self._reader.n_layers)
            for layer in range(self._reader.n_layers):
                inside = (self._source >= start) & (self._source < start + len(prompts))
                pairs = Pairs(
                    source=self._source[inside].to(self._loaded.device) - start,
                    target=self._target[inside].to(self._loaded.device),
                )
                self._rank(
                    layer, mixed.pop(layer, None), self._relation[inside], pairs, unembedding
                )
                progress.advance()

    def _rank(
        self,
        layer: int,
        mixed: Mixed | None,
        relation: Int[Tensor, " pair"],
        pairs: Pairs,
        unembedding: Unembedding,
    ) -> None:
        heads = self._reader.heads(layer, ["output"])
        if mixed is None:
            self._undefine(f"L{layer}", heads.absent["output"])
            for sums in self._sums.values():
                sums[:, layer] = torch.nan
            return
        without_output = silent(heads)
        for with_context, read in ((True, mixed.attended), (False, mixed.source)):
            metrics = [one for one in DYNAMIC_METRICS.values() if one.with_context == with_context]
            if read is None:
                for metric in metrics:
                    self._undefine(metric.name, LATENT)
                    self._sums[metric.name][:, layer] = torch.nan
                continue
            undefined, reasons = _undefined(read, heads.n_heads)
            undefined[list(without_output)] = True
            for head, reason in (reasons | without_output).items():
                self._undefine(f"L{layer}H{head}", reason)
            ranks = output_ranks(read, heads.part("output"), unembedding, pairs, depth=self._depth)
            lacking = undefined[:, pairs.source].cpu()
            for metric in metrics:
                seen = (ranks.negated if metric.of_negated else ranks.plain).cpu()
                for index, asked in enumerate(self._asked):
                    here = relation == index
                    values = metric.compute(seen[:, here], asked.pairs.relation.k)
                    values = values.masked_fill(lacking[:, here], torch.nan)
                    self._sums[metric.name][index, layer] += values.sum(dim=1)

    def _undefine(self, place: str, reason: str) -> None:
        self.undefined.setdefault(place, reason)


def _undefined(
    read: Float[Tensor, "kv_head prompt d_head"], n_heads: int
) -> tuple[Bool[Tensor, "head prompt"], dict[int, str]]:
    """Where heads have no ranks because of what they hold, and why."""
    group = n_heads // len(read)
    broken = ~read.isfinite().all(dim=2).repeat_interleave(group, dim=0)
    empty = ~read.any(dim=2).repeat_interleave(group, dim=0)
    reasons = dict.fromkeys(_heads(empty), "it writes nothing for some prompts, so all tokens tie")
    reasons |= dict.fromkeys(_heads(broken), "NaN or infinite values in its output")
    return broken | empty, reasons


def _heads(places: Bool[Tensor, "head prompt"]) -> list[int]:
    return places.any(dim=1).nonzero().flatten().tolist()


def _run(
    loaded: LoadedModel, prompts: Sequence[Prompt], progress: Progress, told: str
) -> tuple[dict[int, Mixed], list[str]]:
    """What the heads of all layers hold at the end of each prompt, and what happened on the way.

    Args:
        loaded: The model.
        prompts: Those that begin alike and are as long next to each other.
        progress: Told of every prompt.
        told: What this is called.

    Raises:
        ModelError: If the memory does not even hold one prompt.
    """
    progress.steps(told, len(prompts))
    found: dict[int, list[Mixed]] = {}
    notes = []
    for (before, length), same in groupby(prompts, key=lambda one: (one.before, len(one.rest))):
        runner = PromptRunner(loaded.model, loaded.name, torch.tensor(before, device=loaded.device))
        rest = torch.tensor([one.rest for one in same], device=loaded.device)
        size = max(1, sized(_MAX_TOKENS) // length)
        start = 0
        while start < len(rest):
            batch = rest[start : start + size]
            mixed = if_it_fits(partial(runner.run, batch), loaded.device)
            if mixed is not None:
                for layer, one in mixed.items():
                    found.setdefault(layer, []).append(one)
                start += len(batch)
                for _ in batch:
                    progress.advance()
                continue
            size = len(batch) // 2
            if not size:
                raise ModelError(
                    f"the memory does not hold {loaded.name} on one prompt of "
                    f"{len(before) + length} tokens"
                )
            notes.append(
                f"out of memory on {len(batch)} prompts of {len(before) + length} tokens: going "
                f"on with {size} at a time, which changes no score"
            )
            progress.note(notes[-1])
    return {layer: _joined(parts) for layer, parts in found.items()}, notes


def _joined(parts: Sequence[Mixed]) -> Mixed:
    source = [one.source for one in parts if one.source is not None]
    return Mixed(
        attended=torch.cat([one.attended for one in parts], dim=1),
        source=torch.cat(source, dim=1) if source else None,
    )
