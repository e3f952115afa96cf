"""Attention to a class of tokens, relative to how many of them there are."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Quotient, class_metric
from ingest.rows import Rows


@class_metric(
    name="token_lift",
    version=1,
    unit="times the attention of a uniform head",
    range=(0.0, None),
    source=(
        "lift of association rules, Brin et al. 1997, doi:10.1145/253262.253325; token_mass over "
        "the mean over q >= 1 of the share of allowed keys that are in the class"
    ),
)
def token_lift(
    mass: Float[Tensor, "batch head query"], share: Float[Tensor, "batch one query"], rows: Rows
) -> Quotient:
    """Attention to keys of the class over their share of keys; undefined where there is none."""
    later = rows.since(1)
    return mass[..., later], share[..., later]
