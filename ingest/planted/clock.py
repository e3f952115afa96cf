"""Attention by position: sums of cosines of the distance between query and key.

With rotary embeddings (Su et al. 2021, arXiv:2104.09864) a query and a key that are the same for
all tokens meet, delta positions apart, as sum_f a_f cos(w_f delta - phi_f): w_f is the frequency of
a pair of dimensions, and a_f and phi_f are ours. Learned positions that hold cos(w_f i), sin(w_f i)
give the same sum.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One such sum over the distances 0 ... context - 1, by its largest weight scaled to sum 1."""

    weights: Float[Tensor, " pair"]
    phases: Float[Tensor, " pair"]
    values: Float[Tensor, " distance"]
    gap: float
    """How far below the wanted distance's value each other one stays."""

    @property
    def span(self) -> float:
        """The largest value less the smallest."""
        return float(self.values.max() - self.values.min())


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The frequencies, falling, that positions may be told by, in radians a token."""

    frequencies: Float[Tensor, " pair"]
    context: int

    def peak(self, distance: int) -> Kernel:
        """The sum that is largest at one distance, phi_f = w_f distance.

        The first m frequencies with equal weights, m chosen for the widest gap: few leave a far
        distance as high as the wanted one, many blur its neighbours.
        """
        phases = self.frequencies * distance
        n = len(self.frequencies)
        candidates = [(torch.arange(n) < m).double() / m for m in range(1, n + 1)]
        return max((self._kernel(one, phases, distance) for one in candidates), key=_gap)

    def ramp(self) -> Kernel:
        """A sum that grows with distance, so that the first position is the furthest and largest.

        sin(w delta - pi/4) with w context <= pi/2: between -pi/4 and pi/4 a sine is nearly linear,
        and all steps are about equal.

        Raises:
            ValueError: If no frequency is low enough.
        """
        slow = (self.frequencies * self.context <= math.pi / 2).nonzero().flatten()
        if not len(slow):
            raise ValueError(f"no frequency is below a quarter turn in {self.context} positions")
        weights = torch.zeros_like(self.frequencies)
        weights[slow[0]] = 1
        phases = torch.full_like(weights, 3 * math.pi / 4)
        values = self._values(weights, phases)
        gap = float(values.diff().min())
        return Kernel(weights=weights, phases=phases, values=values, gap=gap)

    def _kernel(self, weights: Tensor, phases: Tensor, distance: int) -> Kernel:
        values = self._values(weights, phases)
        others = torch.cat([values[:distance], values[distance + 1 :]])
        gap = float(values[distance] - others.max())
        return Kernel(weights=weights, phases=phases, values=values, gap=gap)

    def _values(self, weights: Tensor, phases: Tensor) -> Float[Tensor, " distance"]:
        distance = torch.arange(self.context, dtype=torch.float64)[:, None]
        return (weights * torch.cos(distance * self.frequencies - phases)).sum(dim=1)


def _gap(kernel: Kernel) -> float:
    return kernel.gap
