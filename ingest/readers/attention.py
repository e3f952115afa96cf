"""Attention patterns of a running model, layer by layer, as its own eager attention gives them.

Every supported architecture's attention module returns, beside what it writes, the weights with
which it has averaged the values. A hook on the module takes them there, so that masks, windows,
biases, caps, norms and rotations are the model's own and nothing is computed a second time.

A sink that is a parameter (gpt-oss) takes part in the softmax and is no key: the rows of such
patterns sum to 1 minus what the sink took, and metrics count only what keys got.
"""

import contextlib
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from catalog.errors import ModelError
from ingest.readers.architectures import layout

_PROOF_LENGTH = 24
_PAST_WINDOW = 8
"""Tokens of the proof that lie beyond a sliding window."""
_MAX_PROOF_BYTES = 1 << 28
"""Of the patterns of all layers; where a window needs more, the proof stays within it."""
_PROOF_TOLERANCE = 1e-5
"""Of probabilities in float32; wider where the model runs in 16 bits."""

_ROUNDED = 0.1
"""Of a token's output between two implementations in 16 bits: 0.02 is usual."""

Observer = Callable[[int, Float[Tensor, "batch head query key"], Int[Tensor, " query"]], None]
"""Told the layer, its patterns in float32, and how many keys each query may attend to."""

_observed: WeakSet[PreTrainedModel] = WeakSet()
_guard = Lock()


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The modules with softmax heads by layer; a hybrid's layers of another kind have none."""
    one = layout(model.config.model_type, "the model")
    found = {}
    for index, layer in enumerate(model.get_submodule(one.layers).children()):
        with contextlib.suppress(AttributeError):
            found[index] = layer.get_submodule(one.attention)
    return found


@contextlib.contextmanager
def observing(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Let `observer` see every layer's patterns while the model runs inside this context.

    A layer's patterns are freed once the observer has seen them. The hooks see every run of this
    model, whichever thread begins it; therefore one observer at a time.

    Raises:
        ModelError: If the model is being observed already.
    """
    with _guard:
        if model in _observed:
            raise ModelError("the model is being observed already; load it a second time")
        _observed.add(model)
    hooks = []
    try:
        with _eager(model.config):
            for layer, module in attention_modules(model).items():
                hook = _hook(layer, observer)
                hooks.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
    finally:
        for one in hooks:
            one.remove()
        _observed.discard(model)


@contextlib.contextmanager
def _eager(config: PreTrainedConfig) -> Iterator[None]:
    # Not set_attn_implementation: it refuses architectures whose modules only ask the config.
    before = config._attn_implementation  # noqa: SLF001 - has no public name
    config._attn_implementation = "eager"  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


def _hook(layer: int, observer: Observer) -> Callable[..., tuple[Any, ...]]:
    def hook(
        module: nn.Module, _args: Any, kwargs: Any, output: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        written, patterns, *rest = output
        if patterns is None:
            raise ModelError(f"the attention of layer {layer} gives no patterns")
        observer(layer, patterns.float(), _allowed(module, kwargs.get("attention_mask"), patterns))
        # Else the model would keep them until the next layer has its own.
        return (written, None, *rest)

    return hook


def _allowed(module: nn.Module, mask: Tensor | None, patterns: Tensor) -> Int[Tensor, " query"]:
    """Keys that the masks leave to each query, the same in all sequences and heads."""
    n = patterns.shape[-1]
    allowed = torch.ones(n, n, dtype=torch.bool, device=patterns.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        allowed &= ~mask[0, 0, :, :n]  # MPT's, true where it hides
    elif mask is not None:
        allowed &= mask[0, 0, :, :n] > torch.finfo(mask.dtype).min / 2  # ALiBi may be added to it
    window = getattr(module, "bias", None)
    if isinstance(window, Tensor) and window.dtype == torch.bool:
        allowed &= window[0, 0, :n, :n]  # GPT-Neo's local layers
    return allowed.sum(dim=-1)


def prove(model: PreTrainedModel, name: str) -> None:
    """Verify on a short input that what the observer sees is what the model does.

    The input is longer than the sliding window, where its patterns take at most 256 MiB. Every
    layer with softmax heads must be seen once and in order; its patterns must be those that the
    model itself hands out, on no key that a mask hides, in rows that sum to 1, or to less where a
    sink that is a parameter takes the rest; and what the last layer writes, hence the logits, must
    be the same with the observer and without. A head that is NaN must be NaN both times.

    Raises:
        ModelError: Naming the model and what differed.
    """
    base, modules = model.base_model, attention_modules(model)
    tokens = _proof_tokens(model)
    is_exact = model.dtype == torch.float32
    tolerance = _PROOF_TOLERANCE if is_exact else torch.finfo(model.dtype).eps * 4
    order: list[int] = []
    reasons: list[str] = []

    def compare(layer: int, patterns: Tensor, allowed: Tensor) -> None:
        reason = _difference(own.attentions[len(order)], patterns, allowed, tolerance)
        reason = reason or _sums(patterns, tolerance, has_sink=hasattr(modules[layer], "sinks"))
        if reason:
            reasons.append(f"layer {layer} {reason}")
        order.append(layer)

    with torch.inference_mode():
        usual = base(tokens, use_cache=False)[0]
        with _eager(model.config):
            own = base(tokens, use_cache=False, output_attentions=True)
        if len(own.attentions) != len(modules) or not modules:
            reasons.append(f"it hands out {len(own.attentions)} patterns of {len(modules)} layers")
        else:
            with observing(model, compare):
                observed = base(tokens, use_cache=False)[0]
            if order != list(modules):
                reasons.append(f"layers {list(modules)} were expected in order, seen were {order}")
            if getattr(model.config, "alibi", False):
                # Falcon's, in transformers 5.23; in 16 bits rounding would hide it from the rest.
                reasons.append("eager attention adds its ALiBi twice")
            moved = _moved(own[0], observed)
            other = _moved(usual, observed)
            # Where experts are chosen, rounding to 16 bits alone moves single tokens far.
            is_moved = other.max() > 100 * tolerance if is_exact else other.median() > _ROUNDED
            if moved.max() > tolerance or is_moved:
                gap = float(torch.maximum(moved, other).max())
                reasons.append(f"its output moves by {gap:.1e} of its size")
    if reasons:
        raise ModelError(
            f"the attention of {name} ({model.config.model_type}) cannot be observed: {reasons[0]}"
        )


def _proof_tokens(model: PreTrainedModel) -> Int[Tensor, "one token"]:
    config = model.config
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None) or 0
    length = max(_PROOF_LENGTH, window + _PAST_WINDOW)
    heads = config.num_hidden_layers * config.num_attention_heads
    if heads * length**2 * 4 > _MAX_PROOF_BYTES:
        length = _PROOF_LENGTH
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (1, length), generator=generator).to(model.device)


def _difference(own: Tensor, seen: Tensor, allowed: Tensor, tolerance: float) -> str | None:
    if seen.shape != own.shape:
        return f"has patterns of shape {tuple(seen.shape)}, not {tuple(own.shape)}"
    error = _distance(own.float(), seen)
    if error > tolerance:
        return f"differs from the model's own patterns by {error:.1e}"
    attended = (seen.nan_to_num() != 0).any(dim=1)[0]
    if attended.triu(1).any() or (attended.sum(dim=-1) > allowed).any():
        return "attends to what its mask hides"
    return None


def _sums(patterns: Tensor, tolerance: float, *, has_sink: bool) -> str | None:
    sums = patterns.nansum(dim=-1)[~patterns.isnan().any(dim=-1)]
    low = 0.0 if has_sink else 1 - tolerance
    if ((sums < low) | (sums > 1 + tolerance)).any():
        return f"has rows that sum to {float(sums.min()):.4f} to {float(sums.max()):.4f}"
    return None


def _moved(
    own: Float[Tensor, "one token d_model"], observed: Float[Tensor, "one token d_model"]
) -> Float[Tensor, "one token"]:
    """How far each token's output lies from the other's, as a share of its length."""
    gap = (own.double() - observed.double()).norm(dim=-1) / own.double().norm(dim=-1)
    gap[own.isnan().any(dim=-1) & observed.isnan().any(dim=-1)] = 0
    return gap.nan_to_num(nan=torch.inf)


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where only one of both is NaN."""
    gap = (one - other).abs()
    gap = gap.masked_fill(one.isnan() & other.isnan(), 0).nan_to_num(nan=torch.inf)
    return float(gap.max())
