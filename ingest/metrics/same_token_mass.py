"""Attention in texts to earlier occurrences of the query's token."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._same_token import mass_after_same_token
from ingest.rows import Rows


@pattern_metric(
    name="same_token_mass",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Wang et al. 2022, arXiv:2211.00593 (section 3, duplicate token heads), in texts; mean "
        "over q whose token x[q] occurs earlier of the sum of P[q, k] over k < q, x[k] = x[q]"
    ),
    needs_tokens=True,
)
def same_token_mass(rows: Rows, sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention to all earlier occurrences of the query's token, where there are any."""
    return mass_after_same_token(rows, sequences, ahead=0)
