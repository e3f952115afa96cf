"""Which tokens each head amplifies most, and what it maps them to, from its weights alone."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import MetricSpec, ProbeSpec, Results
from ingest import salience
from ingest.heads import split_finite
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.readers.weights import HeadReader
from ingest.salience import N_OUTPUTS, N_TOKENS, Salient
from ingest.streaming import Kept, Workroom
from ingest.suites._plan import Inputs, Measured, OpenModel, undefined_of

SUITE = "salient"
PROBE = "vocabulary"
VERSION = 1
"""Raised when salient operations of the same weights become others."""


class SalientPlan:
    """All ordinary tokens of a model, as what its heads read and as what they write."""

    suite = SUITE

    def __init__(self, vocabulary: Vocabulary, *, first_mlp: bool) -> None:
        """Leave out special tokens and rows that no token has."""
        self._vocabulary = vocabulary
        self._allowed = torch.tensor(vocabulary.ordinary_tokens)
        self._first_mlp = first_mlp
        digest = hashlib.sha256(f"{VERSION} {N_TOKENS} {N_OUTPUTS}".encode()).hexdigest()
        self.probes: Mapping[str, ProbeSpec] = {
            PROBE: ProbeSpec(
                name=PROBE,
                kind=PROBE,
                version=VERSION,
                content_hash=f"sha256:{digest}",
                description="every ordinary token of the model's vocabulary, by itself",
            )
        }

    def params(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {
            "first_mlp": self._first_mlp,
            "tokens": N_TOKENS,
            "outputs": N_OUTPUTS,
            "vocabulary": len(self._allowed),
        }

    def notes(self, _probes: Sequence[str]) -> dict[str, Any]:
        return {}

    def metrics(self, _probes: Sequence[str]) -> list[MetricSpec]:
        return []

    def open(self, model: OpenModel) -> None:
        model.reader.verify(first_mlp=self._first_mlp)

    def measure(
        self, model: OpenModel, _probes: Sequence[str], room: Workroom, progress: Progress
    ) -> Measured:
        reader = model.reader
        progress.stage("reading the vocabulary")
        unembedding = reader.unembedding()
        allowed = self._allowed.to(reader.device)
        embedded = reader.embedding()
        after_mlp = reader.first_mlp(embedded) if self._first_mlp else embedded

        def work(layer: int) -> Kept:
            sources = embedded if layer == 0 else after_mlp
            return _of_layer(reader, layer, sources, unembedding, allowed)

        layers = room.layers("salient operations", reader.n_layers, work, progress)
        table = salience.table([_found(kept) for kept in layers], self._vocabulary.text_of)
        return Measured(results=Results(salient=table), undefined=undefined_of(layers))


def plan(_config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs) -> SalientPlan | None:
    """Salient operations need no input; they are not what `--only` asks for."""
    if inputs.only:
        return None
    vocabulary.require_tokenizer(SUITE)
    return SalientPlan(vocabulary, first_mlp=inputs.first_mlp)


def _of_layer(
    reader: HeadReader,
    layer: int,
    sources: Float[Tensor, "vocab d_model"],
    unembedding: Float[Tensor, "vocab d_model"],
    allowed: Tensor,
) -> Kept:
    heads, reasons = split_finite(reader.heads(layer, ["value", "output"]))
    if heads.absent:
        return Kept(tensors={}, undefined={f"L{layer}": next(iter(heads.absent.values()))})
    # Heads that split_finite has made zero write nothing, and have no rows in the table.
    found = salience.salient(heads, sources, unembedding, allowed=allowed)
    return Kept(
        tensors=vars(found),
        undefined={f"L{layer}H{head}": reason for head, reason in reasons.items()},
    )


def _found(kept: Kept) -> Salient | None:
    return Salient(**kept.tensors) if kept.tensors else None
