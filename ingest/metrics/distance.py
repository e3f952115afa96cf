"""How far back attention reaches."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.metrics._positions import offsets


@pattern_metric(
    name="distance",
    version=1,
    unit="token",
    range=(0.0, None),
    source="Vig and Belinkov 2019, arXiv:1906.04284 (section 4.3, mean attention distance)",
)
def distance(
    patterns: Float[Tensor, "batch head query key"], _sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of the attended distance q - k."""
    return (patterns * offsets(patterns)).sum(dim=-1)[..., 1:]
