"""What a layer's heads are made of: the one shape in which readers hand weights to metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Part = Literal["query", "key", "value", "output"]
Circuit = Literal["ov", "qk"]

_FACTORS: dict[Circuit, tuple[Part, Part]] = {"ov": ("value", "output"), "qk": ("query", "key")}


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
    _triangles: dict[Part, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def group(self) -> int:
        """How many query heads share a KV head."""
        return self.n_heads // self.n_kv_heads

    def kv_head(self, head: int) -> int:
        return head // self.group

    def part(self, name: Part) -> Tensor:
        """A matrix that has to be there.

        Raises:
            ValueError: If it is not; says why, where that is known.
        """
        matrix: Tensor | None = getattr(self, name)
        if matrix is None:
            raise ValueError(f"no {name} matrices: {self.absent.get(name, 'not asked for')}")
        return matrix

    def triangle(self, name: Part) -> Float[Tensor, "head rank d_head"]:
        """R of a thin QR decomposition of W_Q, W_K, W_V or W_O^T, for each query head, in float64.

        The other factor is a rotation, so |X R^T| = |X W^T| for every X: norms and singular values
        of products of W are those of products of R, without a d_model x d_model matrix. Kept once
        it is computed.
        """
        if name not in self._triangles:
            matrices = self.part(name)
            tall = matrices.mT if name == "output" else matrices
            # One by one: float64 copies of a large layer's heads would be gigabytes.
            own = torch.stack([torch.linalg.qr(one.double(), mode="r").R for one in tall])
            self._triangles[name] = own.repeat_interleave(self.n_heads // len(own), dim=0)
        return self._triangles[name]

    def core(self, circuit: Circuit) -> Float[Tensor, "head rank_left rank_right"]:
        """A small matrix with the singular values of W_V W_O ("ov") or W_Q W_K^T ("qk")."""
        left, right = _FACTORS[circuit]
        return self.triangle(left) @ self.triangle(right).mT


def split_finite(heads: LayerHeads) -> tuple[LayerHeads, dict[int, str]]:
    """Put zeros where a head's matrices are not all finite, and say which heads and why.

    A KV head that is damaged damages every query head that uses it. The heads named are to have no
    score; what is computed for the others is not touched by them.
    """
    reasons: dict[int, str] = {}
    mended: dict[str, Any] = {}
    for part in ("query", "key", "value", "output"):
        for name in (part, f"{part}_bias"):
            matrix: Tensor | None = getattr(heads, name)
            if matrix is None or name == "output_bias":
                continue
            bad = ~torch.isfinite(matrix).flatten(1).all(dim=1)
            if not bad.any():
                continue
            mended[name] = matrix.masked_fill(bad.reshape(-1, *[1] * (matrix.ndim - 1)), 0.0)
            sharing = heads.group if part in ("key", "value") else 1
            for row in bad.nonzero().flatten().tolist():
                for head in range(row * sharing, (row + 1) * sharing):
                    reasons.setdefault(head, f"NaN or infinite values in its {part} weights")
    return (replace(heads, **mended) if mended else heads), reasons


def silent(heads: LayerHeads) -> dict[int, str]:
    """The heads that write nothing, because a matrix of their OV circuit is zero, and which.

    Every token ties with every other for them: they have no ranks.
    """
    reasons: dict[int, str] = {}
    for part in ("value", "output"):
        matrix: Tensor | None = getattr(heads, part)
        if matrix is None:
            continue
        sharing = heads.group if part == "value" else 1
        for row in (matrix == 0).flatten(1).all(dim=1).nonzero().flatten().tolist():
            for head in range(row * sharing, (row + 1) * sharing):
                reasons.setdefault(head, f"it writes nothing: its {part} weights are zero")
    return reasons
