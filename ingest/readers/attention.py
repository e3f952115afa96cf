"""Attention patterns of a running model, layer by layer, through transformers' own interface.

One function stands in for every architecture's attention. It is proved on each model before it
is believed: see `prove`.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from catalog.errors import ModelError

NAME = "head_catalog"
_PROOF_LENGTH = 24
_PROOF_TOLERANCE = 1e-5
"""Of probabilities computed twice in float32; wider where the model runs in 16 bits."""

Observer = Callable[[int, Float[Tensor, "batch head query key"], Int[Tensor, " query"]], None]
"""Told the layer, its patterns, and how many keys each query may attend to."""

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


def observed_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: Float[Tensor, "batch one query key"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - part of the interface; we only run in evaluation mode
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "batch query head d_value"], None]:
    """Softmax attention whose patterns the current observer sees, in float32.

    Honours what architectures pass: `scaling` of the logits, `softcap` (Gemma 2), the additive
    mask (causal and sliding windows) and `s_aux`, one sink logit per head (gpt-oss).

    Raises:
        ModelError: If the model passes a position bias, which this does not know how to add.
    """
    if rest.get("position_bias") is not None:
        raise ModelError("attention with a position bias is not supported")
    groups = query.shape[1] // key.shape[1]
    keys, values = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    logits = query @ keys.transpose(-1, -2)
    logits = logits * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if attention_mask is not None:
        logits = logits + attention_mask[..., : keys.shape[-2]]
    if s_aux is not None:
        sink = s_aux.reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        patterns = torch.cat([logits, sink], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
    else:
        patterns = logits.softmax(dim=-1, dtype=torch.float32)
    observe = _observer.get()
    if observe is not None:
        observe(cast("int", module.layer_idx), patterns, _allowed(patterns, attention_mask))
    return (patterns.to(query.dtype) @ values).transpose(1, 2).contiguous(), None


def _allowed(patterns: Tensor, mask: Tensor | None) -> Int[Tensor, " query"]:
    if mask is None:
        return torch.arange(1, patterns.shape[-2] + 1, device=patterns.device)
    return (mask[0, 0, :, : patterns.shape[-1]] == 0).sum(dim=-1)


AttentionInterface.register(NAME, observed_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # the same name, or the mask would be None


@contextlib.contextmanager
def observing(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Let `observer` see every layer's patterns while the model runs inside this context."""
    before = model.config._attn_implementation  # noqa: SLF001 - has no public name
    model.set_attn_implementation(NAME)
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
        model.set_attn_implementation(before)


def prove(model: PreTrainedModel, name: str) -> None:
    """Verify on a short input that what the observer sees is what the model does.

    Each layer must be seen exactly once, the patterns must be the model's own eager attention,
    their rows must sum to 1, and the logits must be those without an observer.

    Raises:
        ModelError: Naming the model and what differed.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(_PROOF_LENGTH, getattr(model.config, "max_position_embeddings", _PROOF_LENGTH))
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    tokens = tokens.to(model.device)
    seen: dict[int, list[Tensor]] = {}
    before = model.config._attn_implementation  # noqa: SLF001
    with torch.inference_mode():
        try:
            model.set_attn_implementation("eager")
            own = model(tokens, output_attentions=True, use_cache=False)
            with observing(model, lambda layer, p, _: seen.setdefault(layer, []).append(p)):
                logits = model(tokens, use_cache=False).logits
        finally:
            model.set_attn_implementation(before)
    tolerance = max(_PROOF_TOLERANCE, torch.finfo(model.dtype).eps * 4)
    reason = _difference(own.attentions, seen, tolerance) or _logit_difference(
        own.logits, logits, tolerance
    )
    if reason:
        raise ModelError(
            f"the attention of {name} ({model.config.model_type}) cannot be observed: {reason}"
        )


def _difference(
    own: tuple[Tensor, ...], seen: dict[int, list[Tensor]], tolerance: float
) -> str | None:
    if {layer: len(patterns) for layer, patterns in seen.items()} != dict.fromkeys(
        range(len(own)), 1
    ):
        return f"expected each of {len(own)} layers once, saw {len(seen)} of them"
    for layer, expected in enumerate(own):
        patterns = seen[layer][0]
        if not torch.isfinite(patterns).all():
            return f"layer {layer} has NaN in its attention"
        if patterns.shape != expected.shape:
            return f"layer {layer}: shape {tuple(patterns.shape)}, not {tuple(expected.shape)}"
        error = float((patterns - expected.float()).abs().max())
        if error > tolerance:
            return f"layer {layer} differs from the model's own patterns by {error:.1e}"
    return None


def _logit_difference(own: Tensor, observed: Tensor, tolerance: float) -> str | None:
    error = float((own - observed).abs().max()) / max(1.0, float(own.abs().max()))
    # Rounding grows through the layers; a wrong mask or scaling is larger by orders.
    return f"its logits move by {error:.1e} of their size" if error > 100 * tolerance else None
