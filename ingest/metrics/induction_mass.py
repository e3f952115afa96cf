"""Attention in texts to what followed earlier occurrences of the query's token."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._same_token import mass_after_same_token
from ingest.rows import Rows


@pattern_metric(
    name="induction_mass",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Olsson et al. 2022, arXiv:2209.11895 (prefix matching), in texts; mean over q whose "
        "token x[q] occurs earlier of the sum of P[q, k + 1] over k < q, x[k] = x[q]"
    ),
    needs_tokens=True,
)
def induction_mass(rows: Rows, sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention to what followed all earlier occurrences of the query's token."""
    return mass_after_same_token(rows, sequences, ahead=1)
