"""How far back attention reaches, as a share of what lies behind."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="distance_relative",
    version=1,
    unit="share of the query's position",
    range=(0.0, 1.0),
    source="Vig and Belinkov 2019, arXiv:1906.04284 (section 4.3), divided by q",
)
def distance_relative(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of the attended distance q - k over q."""
    later = rows.since(1)
    return rows.distance[..., later] / rows.positions[later]
