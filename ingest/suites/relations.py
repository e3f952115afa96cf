"""Relation scores of every head from its weights alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec
from catalog.errors import InputError
from ingest.metrics import RELATION_METRICS
from ingest.metrics.relation_hits import DEPTHS
from ingest.probes import relations
from ingest.probes.relations import MIN_USABLE, RelationSet, TokenPairs
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.ranks import Pairs, Ranks, Unembedding, target_ranks
from ingest.readers.loading import LoadedModel
from ingest.readers.weights import WeightReader
from ingest.suites._plan import Inputs, as_rows

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
        tokenizer = vocabulary.tokenizer
        unknown = tokenizer.unk_token_id

        def encode(text: str) -> list[int | None]:
            tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return [t if t < vocabulary.size and t != unknown else None for t in tokens]

        self._first_mlp = first_mlp
        self._usable: dict[str, list[TokenPairs]] = {}
        self._skipped: dict[str, dict[str, str]] = {}
        for one in sets:
            found = [relations.usable(relation, encode) for relation in one.relations]
            self._usable[one.name] = [pairs for pairs in found if len(pairs.sources) >= MIN_USABLE]
            self._skipped[one.name] = {
                pairs.relation.name: f"{len(pairs.sources)} usable pairs of "
                f"{len(pairs.relation.pairs)}, at least {MIN_USABLE} are needed"
                for pairs in found
                if len(pairs.sources) < MIN_USABLE
            }
            if not self._usable[one.name] and one.name != relations.SHIPPED:
                name, why = next(iter(self._skipped[one.name].items()))
                raise InputError(
                    f"relation set {one.name} has nothing that this tokenizer can use ({name}: "
                    f"{why}); a pair is usable where both words are one token"
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
            MetricSpec(
                family=metric.name,
                parameter=name,
                version=metric.version,
                suite=SUITE,
                unit=metric.unit,
                lower=metric.range[0],
                upper=metric.range[1],
                description=metric.description,
                source=metric.source,
            )
            for metric in RELATION_METRICS.values()
            for name in names
        ]

    def measure(
        self, loaded: LoadedModel, probes: Sequence[str], progress: Progress
    ) -> list[Measurement]:
        chosen = [(probe, pairs) for probe in probes for pairs in self._usable[probe]]
        with torch.inference_mode():
            ranks = _ranks(
                loaded,
                [pairs for _, pairs in chosen],
                depth=self._depth,
                first_mlp=self._first_mlp,
                progress=progress,
            )
        measurements = []
        for (probe, pairs), own in zip(chosen, ranks, strict=True):
            for metric in RELATION_METRICS.values():
                seen = own.negated if metric.of_negated else own.plain
                values = torch.stack(
                    [metric.compute(layer, pairs.relation.k).mean(dim=1) for layer in seen]
                )
                name = f"{metric.name}[{pairs.relation.name}]"
                measurements.append(Measurement(metric=name, probe=probe, values=as_rows(values)))
        return measurements


def plan(config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> RelationPlan | None:
    """The shipped relations, a user's besides them, or the user's alone."""
    sets = [relations.from_folder(inputs.relations)] if inputs.relations else []
    if inputs.only and not sets:
        return None
    if not inputs.only:
        sets.insert(0, relations.shipped(config.model_type, config.vocab_size))
    return RelationPlan(sets, vocabulary, first_mlp=inputs.first_mlp)


def _ranks(
    loaded: LoadedModel,
    chosen: Sequence[TokenPairs],
    *,
    depth: int,
    first_mlp: bool,
    progress: Progress,
) -> list[Ranks]:
    """Ranks of every relation's pairs, each [layer, head, pair]; all relations in one pass."""
    reader = WeightReader(loaded.model, loaded.source.name)
    device = loaded.device
    rows: dict[int, int] = {}
    source = [rows.setdefault(token, len(rows)) for one in chosen for token in one.sources]
    target = [token for one in chosen for token in one.targets]
    pairs = Pairs(
        source=torch.tensor(source, device=device), target=torch.tensor(target, device=device)
    )
    embedded = reader.embedding[torch.tensor(list(rows), device=device)]
    after_mlp = reader.first_mlp(embedded) if first_mlp else embedded
    unembedding = Unembedding(reader.unembedding)
    progress.steps("relations", reader.n_layers)
    layers = []
    for layer in range(reader.n_layers):
        layers.append(
            target_ranks(
                embedded if layer == 0 else after_mlp,
                reader.values(layer),
                reader.outputs(layer),
                unembedding,
                pairs,
                depth=depth,
            )
        )
        progress.advance()
    sizes = [len(one.sources) for one in chosen]
    plain = torch.stack([one.plain.cpu() for one in layers]).split(sizes, dim=2)
    negated = torch.stack([one.negated.cpu() for one in layers]).split(sizes, dim=2)
    return [Ranks(plain=p, negated=n) for p, n in zip(plain, negated, strict=True)]
