"""What a suite is going to do to one model, known before the model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.declarations import Measurement, MetricSpec, ProbeSpec
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress
from ingest.readers.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the user wants measured on, besides or instead of what the project ships."""

    relations: Path | None = None
    probe: Path | None = None
    only: bool = False
    first_mlp: bool = True
    """Whether relations read the first block's MLP output in layers after it."""


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

    def measure(
        self, loaded: LoadedModel, probes: Sequence[str], progress: Progress
    ) -> list[Measurement]:
        """Every metric on every one of these probes."""


class Planner(Protocol):
    """Makes a suite's plan."""

    def __call__(
        self, config: PreTrainedConfig, vocabulary: Vocabulary, inputs: Inputs, /
    ) -> Plan | None:
        """None where there is nothing of this suite to measure.

        Raises:
            InputError: If a probe or relation set of the user cannot be used.
        """


def as_rows(scores: Float[Tensor, "layer head"]) -> list[list[float | None]]:
    """Scores as the catalog takes them: NaN, undefined, becomes None."""
    return [[None if value != value else value for value in row] for row in scores.tolist()]  # noqa: PLR0124 - only NaN differs from itself
