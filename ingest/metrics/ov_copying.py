"""Whether a head writes what it reads, or against it."""

from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, weight_metric
from ingest.metrics._token_map import token_eigenvalues


@weight_metric(
    name="ov_copying",
    version=1,
    unit="signed share of eigenvalues",
    range=(-1.0, 1.0),
    source=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (copying, by "
        "eigenvalues of W_E W_V W_O W_U); sum(lambda) / sum(|lambda|)"
    ),
    needs=("value", "output", "gram"),
)
def ov_copying(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, " head"]:
    """Sum of the token map's eigenvalues over the sum of their magnitudes: 1 copies, -1 suppresses.

    Undefined where all eigenvalues are numerically zero. Complex ones come in conjugate pairs, so
    the sum is real.
    """
    eigenvalues = token_eigenvalues(heads, model)
    return eigenvalues.real.sum(dim=1) / eigenvalues.abs().sum(dim=1)
