"""What a head does with words that all models know, in a few numbers."""

from jaxtyping import Float
from torch import Tensor

from ingest.heads import LayerHeads
from ingest.metrics._declare import ModelMatrices, vector_metric
from ingest.signatures import signatures


@vector_metric(
    name="ov_signature",
    version=1,
    unit="projection of the word map",
    range=(-1.0, 1.0),
    source=(
        "Johnson and Lindenstrauss 1984, by the random signs of Achlioptas 2003 (theorem 1.1), of "
        "the centred map x W_V W_O u between 192 words"
    ),
    needs=("value", "output", "anchors"),
)
def ov_signature(heads: LayerHeads, model: ModelMatrices) -> Float[Tensor, "head n"]:
    """128 numbers of length 1; dot products of two heads' tell how alike they map common words.

    Across models, too: see `ingest.signatures`. Undefined for a head that maps all words alike.
    """
    assert model.anchors is not None  # noqa: S101 - narrows the type
    return signatures(heads, model.anchors)
