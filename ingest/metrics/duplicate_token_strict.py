"""How often the previous occurrence of the query's token is attended most."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._period import period_of
from ingest.rows import Rows


@pattern_metric(
    name="duplicate_token_strict",
    version=1,
    unit="share of queries",
    range=(0.0, 1.0),
    source=(
        "Wang et al. 2022, arXiv:2211.00593 (section 3, duplicate token heads), by the largest "
        "attention; share of q in the second copy with P[q, q-T] > P[q, k] for all other k"
    ),
    needs_period=True,
)
def duplicate_token_strict(
    rows: Rows, sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Share of the second copy's queries that attend most to the same token in the first.

    A tie does not count; BOS and the first copy are keys and no queries.
    """
    period = period_of(rows, sequences)
    return rows.attended_most(period, since=rows.length - period)
