"""How a metric declares itself: a pure function and the facts that users see beside its scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What a metric may assume of the token sequences behind a batch of patterns.

    All sequences of a batch have the same length.
    """

    bos: int
    """1 where a BOS token stands first, else 0."""
    period: int | None
    """Length of the repeated block where the sequences are one block repeated once, else None."""
    allowed: Float[Tensor, " query"]
    """How many keys each query may attend to: min(q + 1, window)."""


PatternFunction = Callable[
    [Float[Tensor, "batch head query key"], Sequences], Float[Tensor, "batch head position"]
]
RankFunction = Callable[[Int[Tensor, "head pair"], int], Float[Tensor, "head pair"]]
F = TypeVar("F", bound=Callable[..., Tensor])


@dataclass(frozen=True, kw_only=True)
class Declared(Generic[F]):
    """A metric: what it is called, what it means, and the function that computes it."""

    name: str
    version: int
    unit: str
    range: tuple[float, float | None]
    source: str
    description: str
    needs_period: bool
    of_negated: bool
    compute: F


PATTERN_METRICS: dict[str, Declared[PatternFunction]] = {}
RELATION_METRICS: dict[str, Declared[RankFunction]] = {}


def pattern_metric(
    *,
    name: str,
    version: int,
    unit: str,
    range: tuple[float, float | None],  # noqa: A002 - the word for it
    source: str,
    needs_period: bool = False,
) -> Callable[[PatternFunction], PatternFunction]:
    """Declare a metric of attention patterns.

    The function maps softmaxed patterns of one layer to the metric's value at every position
    over which it is averaged, NaN where it is undefined there. The score of a head is the plain
    mean over these positions and all sequences, summed in float64; it is undefined where no
    position is defined.
    """

    def declare(function: PatternFunction) -> PatternFunction:
        _add(
            PATTERN_METRICS,
            Declared(
                name=name,
                version=version,
                unit=unit,
                range=range,
                source=source,
                description=_first_line(function),
                needs_period=needs_period,
                of_negated=False,
                compute=function,
            ),
        )
        return function

    return declare


def relation_metric(
    *, name: str, version: int, source: str, of_negated: bool = False
) -> Callable[[RankFunction], RankFunction]:
    """Declare a metric of the ranks that a head gives to a relation's targets.

    The function maps ranks (0: no logit is larger; capped, so that larger ranks are equal) and
    the relation's k to a value per pair; the score is its mean over the relation's pairs.
    """

    def declare(function: RankFunction) -> RankFunction:
        _add(
            RELATION_METRICS,
            Declared(
                name=name,
                version=version,
                unit="share of pairs",
                range=(0.0, 1.0),
                source=source,
                description=_first_line(function),
                needs_period=False,
                of_negated=of_negated,
                compute=function,
            ),
        )
        return function

    return declare


def _first_line(function: Callable[..., Tensor]) -> str:
    if not function.__doc__:
        raise ValueError(f"metric function {function.__name__} needs a docstring")
    return function.__doc__.splitlines()[0]


def _add(registry: dict[str, Declared[F]], metric: Declared[F]) -> None:
    if metric.name in PATTERN_METRICS or metric.name in RELATION_METRICS:
        raise ValueError(f"metric {metric.name} is declared twice")
    registry[metric.name] = metric
