"""Attention to the previous occurrence of the query's token."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._period import period_of
from ingest.rows import Rows


@pattern_metric(
    name="duplicate_token",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Wang et al. 2022, arXiv:2211.00593 (section 3, duplicate token heads)",
    needs_period=True,
)
def duplicate_token(rows: Rows, sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention from the second copy of a block to the same token in the first."""
    period = period_of(rows, sequences)
    return rows.behind(period, since=rows.length - period)
