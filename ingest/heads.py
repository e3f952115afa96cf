"""What a layer's heads are made of: the one shape in which readers hand weights to metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerHeads:
    """Matrices of all heads of one layer, in float32.

    Row vectors throughout: a head's query is x @ W_Q + b_Q, and what it writes of a token is
    (x @ W_V + b_V) @ W_O. Nothing is folded or centred, and neither rotary embeddings nor norms of
    queries and keys are applied. Keys and values belong to KV heads: query head h uses KV head
    `kv_head(h)`.

    A part is None where it was not asked for, or where the architecture has no such matrix;
    `absent` then says why, by the part's name.
    """

    n_heads: int
    n_kv_heads: int
    query: Float[Tensor, "head d_model d_key"] | None = None
    key: Float[Tensor, "kv_head d_model d_key"] | None = None
    value: Float[Tensor, "kv_head d_model d_value"] | None = None
    output: Float[Tensor, "head d_value d_model"] | None = None
    query_bias: Float[Tensor, "head d_key"] | None = None
    key_bias: Float[Tensor, "kv_head d_key"] | None = None
    value_bias: Float[Tensor, "kv_head d_value"] | None = None
    output_bias: Float[Tensor, " d_model"] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """How many query heads share a KV head."""
        return self.n_heads // self.n_kv_heads

    def kv_head(self, head: int) -> int:
        return head // self.group
