"""How much of what a layer's attention adds to the residual stream is one head's."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import output_metric
from ingest.written import HeadOutputs


@output_metric(
    name="residual_share",
    version=1,
    unit="share of the layer's update",
    range=(None, None),
    source=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (heads add to the "
        "residual stream); <o_h, u> / <u, u> with u the attention's update of the layer"
    ),
    needs=("z", "added"),
)
def residual_share(outputs: HeadOutputs) -> Float[Tensor, "batch position head"]:
    """Mean share of the attention's update that the head gives; below 0 where it works against it.

    Over all positions at which the attention adds anything. The shares of a layer sum to 1, less
    that of biases. A norm after the attention, its scale given, belongs to the update.
    """
    # 0 / 0, which is NaN, where nothing is added.
    return outputs.along(outputs.added) / outputs.added.square().sum(dim=-1, keepdim=True)
