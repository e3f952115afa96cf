"""Relation scores of every head from its weights alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec, Results
from ingest.heads import silent, split_finite
from ingest.metrics import RELATION_METRICS
from ingest.metrics.relation_hits import DEPTHS
from ingest.probes import relations
from ingest.probes.relations import MIN_USABLE, RelationSet, TokenPairs
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.ranks import Pairs, Ranks, Unembedding, target_ranks
from ingest.readers.weights import HeadReader
from ingest.streaming import Kept, Workroom
from ingest.suites._plan import Inputs, Measured, OpenModel, as_rows, specs, undefined_of

SUITE = "relations"


class RelationPlan:
    """Which relations of which sets a model's tokenizer can use."""

    suite = SUITE

    def __init__(
        self, sets: Sequence[RelationSet], vocabulary: Vocabulary, *, first_mlp: bool
    ) -> None:
        """Tokenize every relation.

        A shipped set that the tokenizer cannot use at all is left out.

        Raises:
            InputError: If a user's set has no relation with enough usable pairs.
        """
        self._first_mlp = first_mlp
        self._usable: dict[str, list[TokenPairs]] = {}
        self._skipped: dict[str, dict[str, str]] = {}
        for one in sets:
            self._usable[one.name], self._skipped[one.name] = relations.usable_of(
                one, vocabulary.encode
            )
        self.probes: Mapping[str, ProbeSpec] = {
            one.name: one.spec for one in sets if self._usable[one.name]
        }

    def params(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {
            "first_mlp": self._first_mlp,
            "minimum_pairs": MIN_USABLE,
            "depth": self._depth,
        }

    def notes(self, probes: Sequence[str]) -> dict[str, Any]:
        return {
            "skipped": {name: self._skipped[name] for name in probes if self._skipped[name]},
            "usable_pairs": {
                name: {pairs.relation.name: len(pairs.sources) for pairs in self._usable[name]}
                for name in probes
            },
        }

    @property
    def _depth(self) -> int:
        ks = [pairs.relation.k for usable in self._usable.values() for pairs in usable]
        return max(*DEPTHS, *ks)

    def metrics(self, probes: Sequence[str]) -> list[MetricSpec]:
        names = sorted({pairs.relation.name for probe in probes for pairs in self._usable[probe]})
        return [
            spec
            for name in names
            for spec in specs(RELATION_METRICS.values(), SUITE, parameter=name)
        ]

    def open(self, model: OpenModel) -> None:
        model.reader.verify(first_mlp=self._first_mlp)

    def measure(
        self, model: OpenModel, probes: Sequence[str], room: Workroom, progress: Progress
    ) -> Measured:
        chosen = [(probe, pairs) for probe in probes for pairs in self._usable[probe]]
        layers = self._ranks(model, [pairs for _, pairs in chosen], room, progress)
        sizes = [len(pairs.sources) for _, pairs in chosen]
        undefined = torch.stack([kept.tensors["undefined"] for kept in layers])
        seen = {
            name: torch.stack([kept.tensors[name] for kept in layers]).split(sizes, dim=2)
            for name in ("plain", "negated")
        }
        measurements = []
        for index, (probe, pairs) in enumerate(chosen):
            for metric in RELATION_METRICS.values():
                ranks = seen["negated" if metric.of_negated else "plain"][index]
                values = torch.stack(
                    [metric.compute(layer, pairs.relation.k).mean(dim=1) for layer in ranks]
                )
                values[undefined] = math.nan
                name = f"{metric.name}[{pairs.relation.name}]"
                measurements.append(Measurement(metric=name, probe=probe, values=as_rows(values)))
        return Measured(results=Results(measurements=measurements), undefined=undefined_of(layers))

    def _ranks(
        self, model: OpenModel, chosen: Sequence[TokenPairs], room: Workroom, progress: Progress
    ) -> list[Kept]:
        """Per layer the ranks of all relations' pairs, one after the other: [head, pair]."""
        reader, device = model.reader, model.reader.device
        rows: dict[int, int] = {}
        source = [rows.setdefault(token, len(rows)) for one in chosen for token in one.sources]
        target = [token for one in chosen for token in one.targets]
        pairs = Pairs(
            source=torch.tensor(source, device=device), target=torch.tensor(target, device=device)
        )
        progress.stage("reading embeddings")
        embedded = reader.embedding(torch.tensor(list(rows)))
        after_mlp = reader.first_mlp(embedded) if self._first_mlp else embedded
        unembedding = Unembedding(reader.unembedding(), screening=model.screening)

        def work(layer: int) -> Kept:
            return _layer_ranks(
                reader,
                layer,
                embedded if layer == 0 else after_mlp,
                unembedding,
                pairs,
                depth=self._depth,
            )

        return room.layers(SUITE, reader.n_layers, work, progress)


def relation_sets(config: PreTrainedConfig, inputs: Inputs) -> list[RelationSet]:
    """The shipped relations, a user's besides them, or the user's alone."""
    own = [relations.from_folder(inputs.relations)] if inputs.relations else []
    return own if inputs.only else [relations.shipped(config.model_type, config.vocab_size), *own]


def plan(config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> RelationPlan | None:
    """Of the sets that are asked for; None where that is none."""
    chosen = relation_sets(config, inputs)
    if not chosen:
        return None
    vocabulary.require_tokenizer(SUITE)
    return RelationPlan(chosen, vocabulary, first_mlp=inputs.first_mlp)


def _layer_ranks(
    reader: HeadReader,
    layer: int,
    sources: Float[Tensor, "source d_model"],
    unembedding: Unembedding,
    pairs: Pairs,
    *,
    depth: int,
) -> Kept:
    heads, damaged = split_finite(reader.heads(layer, ["value", "output"]))
    reasons = silent(heads) | damaged
    undefined = {f"L{layer}H{head}": reason for head, reason in reasons.items()}
    if not torch.isfinite(sources).all():
        undefined = {f"L{layer}": "NaN or infinite values in the first layer's MLP"}
    elif not sources.any():
        undefined = {f"L{layer}": "the first layer's MLP writes nothing, so all tokens tie"}
    if heads.absent:
        undefined = {f"L{layer}": next(iter(heads.absent.values()))}
    if heads.value is None or heads.output is None or f"L{layer}" in undefined:
        shape = (heads.n_heads, len(pairs.source))
        ranks = Ranks(plain=torch.full(shape, depth), negated=torch.full(shape, depth))
        bad = torch.ones(heads.n_heads, dtype=torch.bool)
    else:
        ranks = target_ranks(sources, heads.value, heads.output, unembedding, pairs, depth=depth)
        bad = torch.tensor([head in reasons for head in range(heads.n_heads)])
    return Kept(
        tensors={
            "plain": ranks.plain.to(torch.int16),
            "negated": ranks.negated.to(torch.int16),
            "undefined": bad,
        },
        undefined=undefined,
    )
