"""What a suite is going to do to one model, known before any of its weights is read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import MetricSpec, ProbeSpec, Results
from ingest.metrics import Declared
from ingest.probes.classes import TokenClasses
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.readers import loading
from ingest.readers.loading import LoadedModel, PreparedModel
from ingest.readers.source import resolve
from ingest.readers.weights import HeadReader
from ingest.request import ModelRequest
from ingest.streaming import Kept, Workroom


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the user wants measured on, besides or instead of what the project ships."""

    relations: Path | None = None
    probe: Path | None = None
    only: bool = False
    token_classes: TokenClasses = field(default_factory=TokenClasses)
    """Built-in classes of tokens, and the user's own."""
    first_mlp: bool = True
    """Whether relations read the first block's MLP output in layers after it."""


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model as suites need it: its weights to be read, or the whole of it to be run.

    Either is made when it is first asked for, so that weights alone cost no more than themselves.
    """

    prepared: PreparedModel
    device: str
    dtype: str
    progress: Progress

    @classmethod
    def of(cls, request: ModelRequest, progress: Progress) -> "OpenModel":
        """Find the checkpoint, and see that it can be read; none of its weights is.

        Raises:
            ModelError: If it cannot.
            UsageError: If there is no such device or dtype.
        """
        device = loading.choose_device(request.device)
        dtype = loading.choose_dtype(request.dtype, device)
        source = resolve(
            request.model,
            name=request.name,
            revision=request.revision,
            allow_pickle=request.allow_pickle,
            on_progress=progress.stage,
        )
        prepared = loading.prepare(source, on_progress=progress.stage)
        return cls(prepared=prepared, device=device, dtype=dtype, progress=progress)

    @property
    def name(self) -> str:
        return self.prepared.source.name

    @property
    def screening(self) -> torch.dtype:
        """What most of ranking is done in; it never decides the ranks."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    @cached_property
    def reader(self) -> HeadReader:
        return loading.reader(self.prepared, device=self.device)

    @cached_property
    def loaded(self) -> LoadedModel:
        return loading.load(
            self.prepared, device=self.device, dtype=self.dtype, progress=self.progress
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A suite's results, and what of them is undefined and why, by head or layer."""

    results: Results
    undefined: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What happened on the way and changed no score, by probe."""


class Plan(Protocol):
    """One suite on one model: its probes, and how to measure any of them."""

    @property
    def suite(self) -> str: ...

    @property
    def probes(self) -> Mapping[str, ProbeSpec]: ...

    def params(self, probes: Sequence[str]) -> dict[str, Any]:
        """How these probes are measured."""

    def notes(self, probes: Sequence[str]) -> dict[str, Any]:
        """What of these probes is skipped and why."""

    def metrics(self, probes: Sequence[str]) -> list[MetricSpec]:
        """What will be measured on these probes."""

    def open(self, model: OpenModel) -> None:
        """Make the model ready, so that a bad one is found before anything is written.

        Raises:
            ModelError: If it cannot be read.
        """

    def measure(
        self, model: OpenModel, probes: Sequence[str], room: Workroom, progress: Progress
    ) -> Measured:
        """Every metric on every one of these probes."""


class Planner(Protocol):
    """Makes a suite's plan."""

    def __call__(
        self, config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs, /
    ) -> Plan | None:
        """None where there is nothing of this suite to measure.

        Raises:
            InputError: If a probe or relation set of the user cannot be used.
            ModelError: If this suite cannot be measured on such a model.
        """


def as_rows(scores: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    """Scores as the catalog takes them: NaN, undefined, becomes None."""
    return [[None if value != value else value for value in row] for row in scores.tolist()]  # noqa: PLR0124 - only NaN differs from itself


def specs(
    metrics: Iterable[Declared[Any]],
    suite: str,
    *,
    parameter: str | None = None,
    are_vectors: bool = False,
) -> list[MetricSpec]:
    """Declared metrics as the catalog keeps them."""
    return [
        MetricSpec(
            family=metric.name,
            parameter=parameter,
            version=metric.version,
            suite=suite,
            unit=metric.unit,
            lower=metric.range[0],
            upper=metric.range[1],
            description=metric.description,
            source=metric.source,
            is_vector=are_vectors,
        )
        for metric in metrics
    ]


def undefined_of(layers: Sequence[Kept]) -> dict[str, str]:
    """The reasons of all layers together."""
    return {head: reason for kept in layers for head, reason in kept.undefined.items()}
