"""What is derived, and from what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ingest.planted.design import EPSILON, Role
from ingest.probes.sequences import Needle

SHARPNESS = 5 * EPSILON
"""Total variation between a row of attention and its ideal, at most.

EPSILON by design; the rest is float32's rounding of scores, which are as large as a few thousand,
times at most EPSILON and of scores that are equal on paper.
"""
ROUNDING = 1e-4
"""Relative, of norms and eigenvalues: weights are float32, of a defective matrix at worst."""
ABSENT = 1e-5
"""Of what is 0 on paper and computed as a sum."""

Keys = Sequence[int]
Heads = Mapping[Role, tuple[int, int]]
"""Layer and head by role."""


class NotDerivedError(ValueError):
    """What is asked for does not follow from the design; nothing is wrong with the head."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A metric's value on paper, None where it is undefined; and how far off the model may be."""

    value: float | None
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a metric is measured on: token sequences, or a relation's pairs."""

    tokens: Sequence[Sequence[int]] = ()
    period: int | None = None
    """As in probes: the length of a block that is said twice, where that is all there is."""
    bos: int = 0
    needles: Sequence[Needle] = ()
    """One per sequence, or none at all."""
    pairs: Mapping[int, int] = field(default_factory=dict)
    k: int = 10
