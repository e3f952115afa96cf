"""How much of a head's attention is the same whatever the tokens are."""

import torch
from torch import Tensor

from ingest.metrics._declare import Sums, pattern_group_metric
from ingest.rows import Rows


def _finish(sums: Sums, count: int) -> tuple[Tensor, Tensor]:
    # With D = P - u: sum_b |D_b - mean D|^2 = sum_b |D_b|^2 - |sum_b D_b|^2 / count, so that the
    # score is a quotient of two sums of squares, and nothing cancels.
    shared = sums["deviation"].square().sum(dim=(-2, -1)) / count
    return shared + sums["beyond"], sums["squares"] + sums["beyond"]


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
def positional(rows: Rows) -> Sums:
    """Share of attention's deviation from uniform that is the same in all sequences.

    Means are over sequences of equal length; a length of one sequence says nothing and is left
    out. Of n sequences even patterns that share nothing give 1 / n. Undefined for attention that
    is uniform exactly. What a sink that is a parameter took counts as deviation.
    """
    uniform = 1 / (rows.positions + 1)
    keys = torch.ones_like(rows.patterns[0, 0]).tril(rows.first - rows.first_key)
    deviation = rows.patterns - keys * uniform[:, None]
    squares = torch.linalg.vector_norm(deviation, dim=(-2, -1)).double().square()
    # Keys before the window get nothing of any sequence.
    beyond = len(rows.patterns) * rows.first_key * uniform.double().square().sum()
    return {
        "deviation": deviation.sum(dim=0).double(),
        "squares": squares.sum(dim=0),
        "beyond": beyond,
    }
