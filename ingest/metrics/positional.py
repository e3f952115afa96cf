"""How much of a head's attention is the same whatever the tokens are."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, Sums, pattern_group_metric


def _finish(sums: Sums, count: int) -> tuple[Tensor, Tensor]:
    # With D = P - u: sum_b |D_b - mean D|^2 = sum_b |D_b|^2 - |sum_b D_b|^2 / count, so that the
    # score is a quotient of two sums of squares, and nothing cancels.
    shared = sums["deviation"].square().sum(dim=(-2, -1)) / count
    return shared, sums["squares"]


@pattern_group_metric(
    name="positional",
    version=1,
    unit="share of the squared deviation from uniform attention",
    range=(0.0, 1.0),
    source=(
        "a coefficient of determination, cf. positional heads of Voita et al. 2019, "
        "arXiv:1905.09418; 1 - sum_b |P_b - mean_b P|^2 / sum_b |P_b - u|^2 over sequences b of "
        "one length, u[q, k] = 1 / (q + 1)"
    ),
    finish=_finish,
)
def positional(patterns: Float[Tensor, "batch head query key"], _sequences: Sequences) -> Sums:
    """Share of attention's deviation from uniform that is the same in all sequences.

    Means are over sequences of equal length; a length of one sequence says nothing and is left
    out. Of n sequences even patterns that share nothing give 1 / n. Undefined for attention that
    is uniform exactly. What a sink that is a parameter took counts as deviation.
    """
    n = patterns.shape[-1]
    position = torch.arange(1, n + 1, device=patterns.device, dtype=patterns.dtype)
    uniform = torch.ones(n, n, device=patterns.device, dtype=patterns.dtype).tril()
    deviation = patterns - uniform / position[:, None]
    squares = deviation.square().sum(dim=(-2, -1))
    return {
        "deviation": deviation.sum(dim=0, dtype=torch.float64),
        "squares": squares.sum(dim=0, dtype=torch.float64),
    }
