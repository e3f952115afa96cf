"""How much attention the most attended key gets."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences, pattern_metric


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
def confidence(
    patterns: Float[Tensor, "batch head query key"], _sequences: Sequences
) -> Float[Tensor, "batch head position"]:
    """Mean over queries but the first of the largest attention probability."""
    return patterns[..., 1:, :].amax(dim=-1)
