"""In how many directions a head writes what it reads."""

from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, weight_metric
from ingest.metrics._token_map import token_eigenvalues


@weight_metric(
    name="ov_positive_eigenvalues",
    version=1,
    unit="share of eigenvalues",
    range=(0.0, 1.0),
    source=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (copying, by "
        "eigenvalues of W_E W_V W_O W_U); those with Re > 0, all weighted alike"
    ),
    needs=("value", "output", "gram"),
)
def ov_positive_eigenvalues(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, " head"]:
    """Share of the token map's eigenvalues whose real part is positive.

    Of those that are not numerically zero: |lambda| > 2^-23 |W_O| |W_U^T W_E W_V|; undefined where
    there are none.
    """
    eigenvalues = token_eigenvalues(heads, model)
    nonzero = (eigenvalues != 0).sum(dim=1)
    return (eigenvalues.real > 0).sum(dim=1).double() / nonzero
