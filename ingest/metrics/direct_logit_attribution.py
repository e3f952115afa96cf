"""What a head does directly to the logit of the token that follows."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import output_metric
from ingest.written import HeadOutputs


@output_metric(
    name="direct_logit_attribution",
    version=1,
    unit="logit",
    range=(None, None),
    source=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (direct path to the "
        "logits); scale of the final norm as in the ordinary run, like `apply_ln_to_stack` of "
        "TransformerLens, and without its bias"
    ),
    needs=("z", "targets"),
)
def direct_logit_attribution(outputs: HeadOutputs) -> Float[Tensor, "batch next head"]:
    """Mean part of the next token's logit that the head writes itself, before any final cap.

    (scale * gain * C o_h) . W_U[next], over all positions with a next token; the scale follows
    when the pass is over.
    """
    return outputs.of_next_token
