"""How far back attention reaches, the attention sink left out."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="distance_sink_free",
    version=1,
    unit="token",
    range=(0.0, None),
    source=(
        "Vig and Belinkov 2019, arXiv:1906.04284 (section 4.3); "
        "Xiao et al. 2023, arXiv:2309.17453 (sinks)"
    ),
)
def distance_sink_free(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean attended distance with key 0 removed and the rest renormalised."""
    later = rows.since(1)
    return (rows.distance_sink_free / rows.sink_free)[..., later]
