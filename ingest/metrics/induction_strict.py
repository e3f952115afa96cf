"""How often what followed the query's token the last time is attended most."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._period import period_of
from ingest.rows import Rows


@pattern_metric(
    name="induction_strict",
    version=1,
    unit="share of queries",
    range=(0.0, 1.0),
    source=(
        "Olsson et al. 2022, arXiv:2209.11895 (prefix matching), by the largest attention; "
        "share of q in the second copy with P[q, q-T+1] > P[q, k] for all other k"
    ),
    needs_period=True,
)
def induction_strict(rows: Rows, sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Share of the second copy's queries that attend most to the token after their earlier self.

    A tie does not count; BOS and the first copy are keys and no queries.
    """
    period = period_of(rows, sequences)
    return rows.attended_most(period - 1, since=rows.length - period)
