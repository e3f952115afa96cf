"""How often the token just before is attended most."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="previous_token_strict",
    version=1,
    unit="share of queries",
    range=(0.0, 1.0),
    source=(
        "Voita et al. 2019, arXiv:1905.09418 (positional heads, by where their maximum lies); "
        "share of q >= 1 with P[q, q-1] > P[q, k] for all other k"
    ),
)
def previous_token_strict(
    rows: Rows, _sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Share of queries but the first that attend to the position before more than to any other.

    A tie does not count. A sink that is a parameter is no key and does not compete.
    """
    return rows.attended_most(1, since=1)
