"""How much attention the most attended key gets."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric
from ingest.rows import Rows


@pattern_metric(
    name="confidence",
    version=1,
    unit="attention probability",
    range=(0.0, 1.0),
    source=(
        "Voita et al. 2019, arXiv:1905.09418 (section 4, head confidence); "
        "mean over q >= 1 of max P"
    ),
)
def confidence(rows: Rows, _sequences: Sequences) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of the largest attention probability."""
    return rows.largest[..., rows.since(1)]
