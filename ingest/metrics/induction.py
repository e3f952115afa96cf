"""Attention to what followed the query's token the last time."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._period import period_of
from ingest.rows import Rows


@pattern_metric(
    name="induction",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source="Olsson et al. 2022, arXiv:2209.11895 (prefix matching; second copy)",
    needs_period=True,
)
def induction(rows: Rows, sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attention from the second copy of a block to the token after its earlier self."""
    period = period_of(rows, sequences)
    return rows.behind(period - 1, since=rows.length - period)
