"""What a head does directly to the next token's logit, compared with all tokens' logits."""

from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import output_metric
from ingest.written import HeadOutputs


@output_metric(
    name="direct_logit_attribution_centered",
    version=1,
    unit="logit",
    range=(None, None),
    source=(
        "as direct_logit_attribution, with the mean row taken off W_U, like `center_unembed` of "
        "TransformerLens: adding one number to all logits moves no probability"
    ),
    needs=("z", "targets"),
)
def direct_logit_attribution_centered(outputs: HeadOutputs) -> Float[Tensor, "batch next head"]:
    """Mean part of the next token's logit that the head writes itself, less its part of the mean.

    (scale * gain * C o_h) . (W_U[next] - mean of W_U's rows); the scale follows when the pass is
    over.

    Raises:
        ValueError: If there are no targets.
    """
    if outputs.mean_target is None:
        raise ValueError("without targets there is no logit to attribute")
    of_next = outputs.of_next_token
    return of_next - outputs.along(outputs.mean_target)[:, : of_next.shape[1]]
