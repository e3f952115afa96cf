"""What heads write, formed head by head with norms written out: what sums are compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ingest.metrics import OUTPUT_METRICS
from ingest.readers.architectures import layout

Array = NDArray[np.float64]
OFFSET_GAIN = ("gemma", "gemma2", "gemma3_text", "nemotron", "qwen3_next", "qwen3_5_text")
"""Where a norm multiplies by 1 + its weight."""
NORMED_UPDATES = ("gemma2", "gemma3_text", "olmo2", "olmo3")


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def frozen(norm: nn.Module, x: Array, offset: float) -> tuple[Array, Array, bool]:
    """Gain times scale of each token, and whether the mean goes: norms as papers define them."""
    centred = "RMS" not in type(norm).__name__
    x = x - x.mean(-1, keepdims=True) if centred else x
    eps = next(
        (getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-5
    )
    weight = getattr(norm, "weight", None)
    gain = np.ones(x.shape[-1]) if weight is None else array(weight) + offset
    return gain / np.sqrt((x**2).mean(-1, keepdims=True) + eps), gain, centred


class Explicit:
    """One batch: o_h of every layer, head and token, through the norms."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        """Run the model and keep what goes into projections and norms."""
        config, names = model.config, layout(model.config.model_type, "m")
        self.model, self.tokens = model, tokens
        self.offset = 1.0 if config.model_type in OFFSET_GAIN else 0.0
        self.blocks = list(model.get_submodule(names.layers).children())
        self.projections = {
            layer: block.get_submodule(f"{names.attention}.{names.output}")
            for layer, block in enumerate(self.blocks)
            if hasattr(block, names.attention.split(".")[0])
        }
        final = model.get_submodule(names.final_norm)
        self.residual = getattr(config, "residual_multiplier", 1.0)
        self.logit = {
            "granite": lambda: 1 / config.logits_scaling,
            "granitemoe": lambda: 1 / config.logits_scaling,
            "cohere": lambda: config.logit_scale,
            "cohere2": lambda: config.logit_scale,
        }.get(config.model_type, lambda: 1.0)()
        with torch.inference_mode(), inputs_of([*self.projections.values(), final]) as read:
            self.logits = array(model(tokens, use_cache=False).logits)
        self.stream = array(read[final])
        self.scale, self.gain, self.centred = frozen(final, self.stream, self.offset)
        head = model.get_output_embeddings()
        self.unembedding = array(head.weight)
        bias = getattr(head, "bias", None)
        self.constant = np.zeros(len(self.unembedding)) if bias is None else array(bias)
        final_bias = getattr(final, "bias", None)
        if final_bias is not None:
            self.constant = self.constant + self.unembedding @ array(final_bias)
        self.parts = {
            layer: self._of_layer(layer, read[p]) for layer, p in self.projections.items()
        }

    def _of_layer(self, layer: int, z: Tensor) -> tuple[Array, Array, Array]:
        """Outputs before any norm, what of them is added, and all that is added."""
        projection, n_heads = self.projections[layer], self.model.config.num_attention_heads
        own = []
        with torch.inference_mode():
            silence = array(projection(torch.zeros_like(z)))
            whole = array(projection(z))
            for slots in np.split(np.arange(z.shape[-1]), n_heads):
                alone = torch.zeros_like(z)
                alone[..., slots] = z[..., slots]
                own.append(array(projection(alone)) - silence)
        heads = np.stack(own, axis=2)
        if self.model.config.model_type not in NORMED_UPDATES:
            return heads, heads, whole
        norm = self.blocks[layer].post_attention_layernorm
        assert isinstance(norm, nn.Module)
        scale, _, centred = frozen(norm, whole, self.offset)
        assert not centred
        return heads, heads * scale[:, :, None], whole * scale

    def to_logits(self, vectors: Array) -> Array:
        """What vectors [batch, token, ..., d_model] of the final residual stream give logits."""
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdims=True)
        scale = self.scale.reshape(*self.scale.shape[:2], *[1] * (vectors.ndim - 3), -1)
        return (vectors * scale) @ self.unembedding.T * self.logit

    def next_token(self, logits: Array) -> Array:
        """Of the tokens that follow: [batch, token - 1, ...] of [batch, token, ..., vocab]."""
        following = array(self.tokens[:, 1:]).astype(int)
        index = following.reshape(*following.shape, *[1] * (logits.ndim - 2))
        return np.take_along_axis(logits[:, :-1], index, axis=-1)[..., 0]

    def values(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Each metric at [batch, position, head], by layer."""
        for layer, (heads, parts, whole) in self.parts.items():
            logits = self.to_logits(parts * self.residual)
            yield (
                layer,
                {
                    "output_norm": np.linalg.norm(heads, axis=-1),
                    "residual_share": np.einsum("bthd,btd->bth", parts, whole)
                    / (whole**2).sum(-1)[..., None],
                    "direct_logit_attribution": self.next_token(logits),
                    "direct_logit_attribution_centered": self.next_token(
                        logits - logits.mean(-1, keepdims=True)
                    ),
                },
            )


@contextmanager
def inputs_of(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    read: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, args: Any) -> None:
        read[module] = args[0].detach().clone()

    hooks = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield read
    finally:
        for one in hooks:
            one.remove()


def explicit(model: PreTrainedModel, *batches: Tensor) -> dict[str, Array]:
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    found: dict[str, dict[int, list[Array]]] = {name: {} for name in OUTPUT_METRICS}
    for tokens in batches:
        for layer, values in Explicit(model, tokens).values():
            for name, value in values.items():
                found[name].setdefault(layer, []).append(value.reshape(-1, shape[1]))
    scores = {name: np.full(shape, np.nan) for name in OUTPUT_METRICS}
    for name, layers in found.items():
        for layer, parts in layers.items():
            scores[name][layer] = np.concatenate(parts).mean(axis=0)
    return scores
