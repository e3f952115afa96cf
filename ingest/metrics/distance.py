"""How far back attention reaches."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="distance",
    version=1,
    unit="token",
    range=(0.0, None),
    source="Vig and Belinkov 2019, arXiv:1906.04284 (section 4.3, mean attention distance)",
)
def distance(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of the attended distance q - k."""
    return rows.distance[..., rows.since(1)]
