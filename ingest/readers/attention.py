"""Attention patterns of a running model, layer by layer, some rows at a time.

Most architectures compute attention through transformers' interface. There a function of ours
(`_blocks`) takes the place of the usual one: it makes a block of rows, shows it, and averages the
values with it, so that no whole pattern is ever there, and nothing is made of what no query sees.

The other modules return, with eager attention, the weights with which they have averaged the
values: a hook takes them, and shows them in blocks as well. Masks, windows, biases, caps, norms
and rotations are the model's own either way, and `prove` compares the patterns with its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from catalog.errors import ModelError
from ingest.readers.architectures import layout
from ingest.rows import Rows

_NAME = "head-catalog"
"""Of our attention, and of the masks that go with it."""
_BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Of one block of rows: what stays in a processor's cache, and what keeps a GPU busy."""
_PROOF_ROWS = 10
"""Rows of a block in the proof, so that there are several."""
_PROOF_LENGTH = 24
_PAST_WINDOW = 8
"""Tokens of the proof that lie beyond a sliding window."""
_MAX_PROOF_BYTES = 1 << 28
"""Of the patterns of all layers; where a window needs more, the proof stays within it."""
_PROOF_TOLERANCE = 1e-4
"""Of probabilities in float32, which rounding moves by 1e-5 in Gemma 3; wider in 16 bits."""

_ROUNDED = 0.1
"""Of a token's output between two implementations in 16 bits: 0.02 is usual."""
_HIDDEN = torch.finfo(torch.float32).min / 2
"""Added to a logit that no query sees; finite, since 0 times infinity is none."""

Observer = Callable[[int, Rows], None]
"""Told the layer and, from the first query to the last, blocks of rows of its patterns."""


@dataclass(frozen=True)
class _Observed:
    """What is to be done with one layer's patterns."""

    layer: int
    observer: Observer
    n_rows: int | None


_observed: WeakKeyDictionary[nn.Module, _Observed] = WeakKeyDictionary()
"""By attention module, of all models that run under observation."""
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
def observing(
    model: PreTrainedModel, observer: Observer, *, n_rows: int | None = None
) -> Iterator[None]:
    """Let `observer` see every layer's patterns while the model runs inside this context.

    Sequences are given whole, without padding and without a cache of keys. Rows are freed once the
    observer has seen them. It sees every run of this model, whichever thread begins it; therefore
    one observer at a time.

    Args:
        model: Of a supported architecture.
        observer: Told of every block of rows.
        n_rows: Of a block; by default as many as the device computes with best.

    Raises:
        ModelError: If the model is being observed already.
    """
    modules = attention_modules(model)
    with _guard:
        if any(module in _observed for module in modules.values()):
            raise ModelError("the model is being observed already; load it a second time")
        for layer, module in modules.items():
            _observed[module] = _Observed(layer, observer, n_rows)
    hooks = []
    try:
        if has_interface(model):
            with _attention(model.config, _NAME):
                yield
        else:
            hooks = [m.register_forward_hook(_hook, with_kwargs=True) for m in modules.values()]
            with _attention(model.config, "eager"):
                yield
    finally:
        for one in hooks:
            one.remove()
        for module in modules.values():
            del _observed[module]


def has_interface(model: PreTrainedModel) -> bool:
    """Whether attention is computed block by block; otherwise layers make their whole patterns."""
    return model._supports_attention_backend  # noqa: SLF001 - has no public name


@contextlib.contextmanager
def _attention(config: PreTrainedConfig, name: str) -> Iterator[None]:
    # Not set_attn_implementation: it refuses architectures whose modules only ask the config.
    before = config._attn_implementation  # noqa: SLF001 - has no public name
    config._attn_implementation = name  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


@dataclass(frozen=True)
class _Mask:
    """What hides keys from queries, asked for some rows at a time.

    Takes the place of a mask of all queries and keys, which would be a whole pattern's size.
    """

    is_visible: Callable[..., Bool[Tensor, "..."]]
    device: torch.device
    _blocks: dict[tuple[int, int], "_Visible"] = field(default_factory=dict)

    def rows(self, first: int, stop: int) -> "_Visible":
        """For the queries from `first` on, among the keys before `stop`."""
        if (first, stop) not in self._blocks:
            self._blocks[first, stop] = self._look(first, stop)
        return self._blocks[first, stop]

    def _look(self, first: int, stop: int) -> "_Visible":
        key = torch.arange(stop, device=self.device)
        query = key[first:, None]
        zero = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        visible = self.is_visible(zero, zero, query, key[None]).expand(stop - first, stop)
        first_key = int(visible.any(dim=0).int().argmax())
        visible = visible[:, first_key:]
        # Before the first query itself, most blocks see all keys or, of a window, all but a few.
        hidden = (~visible).any(dim=0).int()
        start = int(hidden.argmax()) if hidden.any() else visible.shape[1]
        added = torch.where(visible[:, start:], 0.0, _HIDDEN)
        return _Visible(first_key, start, added, visible.sum(dim=1))


@dataclass(frozen=True)
class _Visible:
    """What a block of queries sees, from `first_key` on."""

    first_key: int
    start: int
    """Keys counted from `first_key` that all of these queries see."""
    added: Float[Tensor, "query key"]
    """To the logits of the other keys."""
    allowed: Int[Tensor, " query"]


def _mask(*, mask_function: Callable[..., Tensor], device: torch.device, **_: Any) -> _Mask:
    return _Mask(mask_function, device)


def _blocks(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch query head d_value"], None]:
    """Softmax attention, as transformers' interface asks for it, whose rows an observer sees.

    Raises:
        ModelError: If the model gives a mask or bias that it does not give to eager attention.
    """
    observed = _observed[module]
    if not isinstance(attention_mask, _Mask) or position_bias is not None:
        raise ModelError(f"the attention of layer {observed.layer} has a mask of its own")
    batch, n_heads, length, d_head = query.shape
    n_kv, d_value = value.shape[1], value.shape[3]
    output = value.new_empty(batch, length, n_heads, d_value)
    size = observed.n_rows or block_rows(batch * n_heads * length, query.device)
    for first in range(0, length, size):
        stop = min(first + size, length)
        visible = attention_mask.rows(first, stop)
        seen = slice(visible.first_key, stop)
        # Of one KV head all query heads together, so that its keys need not be repeated.
        grouped = query[:, :, first:stop].reshape(batch, n_kv, -1, d_head)
        logits = grouped @ key[:, :, seen].transpose(2, 3)
        logits *= d_head**-0.5 if scaling is None else scaling
        logits = logits.float().view(batch, n_heads, stop - first, -1)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        logits[..., visible.start :] += visible.added
        patterns, below = _softmax(logits, s_aux)
        observed.observer(
            observed.layer,
            Rows(
                patterns=patterns,
                first=first,
                length=length,
                allowed=visible.allowed,
                below_largest=below,
            ),
        )
        written = patterns.to(value.dtype).view(*grouped.shape[:3], -1) @ value[:, :, seen]
        output[:, first:stop] = written.view(batch, n_heads, -1, d_value).transpose(1, 2)
    return output, None


def block_rows(elements: int, device: torch.device) -> int:
    """How many rows a block has by default, of as many elements as one query's are together."""
    return max(1, _BLOCK_ELEMENTS.get(device.type, 1 << 21) // elements)


def _softmax(
    logits: Float[Tensor, "batch head query key"], sinks: Float[Tensor, " head"] | None
) -> tuple[Tensor, Tensor]:
    """Patterns, and how far each logit lies below its row's largest; the logits are used up."""
    largest = logits.amax(dim=-1, keepdim=True)
    logits -= largest
    if sinks is None:
        return logits.softmax(dim=-1), logits
    beside = (sinks.float().view(1, -1, 1, 1) - largest).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, beside], dim=-1).softmax(dim=-1)[..., :-1].contiguous(), logits


AttentionInterface.register(_NAME, _blocks)
AttentionMaskInterface.register(_NAME, _mask)


def _hook(module: nn.Module, _args: Any, kwargs: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Show what eager attention returns beside what it writes."""
    written, patterns, *rest = output
    one = _observed[module]
    if patterns is None:
        raise ModelError(f"the attention of layer {one.layer} gives no patterns")
    allowed = _allowed(module, kwargs.get("attention_mask"), patterns)
    batch, n_heads, length, _ = patterns.shape
    size = one.n_rows or block_rows(batch * n_heads * length, patterns.device)
    for first in range(0, length, size):
        stop = min(first + size, length)
        one.observer(
            one.layer,
            Rows(
                patterns=patterns[:, :, first:stop, :stop].float(),
                first=first,
                length=length,
                allowed=allowed[first:stop],
            ),
        )
    # Else the model would keep them until the next layer has its own.
    return (written, None, *rest)


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

    def compare(layer: int, rows: Rows) -> None:
        if rows.first == 0:
            order.append(layer)
        if len(order) > len(own.attentions):
            return
        reason = _difference(own.attentions[len(order) - 1], rows, tolerance)
        has_sink = hasattr(modules[layer], "sinks")
        reason = reason or _sums(rows.patterns, tolerance, has_sink=has_sink)
        if reason:
            reasons.append(f"layer {layer} {reason}")

    with torch.inference_mode():
        usual = base(tokens, use_cache=False)[0]
        with _attention(model.config, "eager"):
            own = base(tokens, use_cache=False, output_attentions=True)
        if len(own.attentions) != len(modules) or not modules:
            reasons.append(f"it hands out {len(own.attentions)} patterns of {len(modules)} layers")
        else:
            with observing(model, compare, n_rows=_PROOF_ROWS):
                observed = base(tokens, use_cache=False)[0]
            if order != list(modules):
                reasons.append(f"layers {list(modules)} were expected in order, seen were {order}")
            if getattr(model.config, "alibi", False):
                # Falcon's, in transformers 5.23; in 16 bits rounding would hide it from the rest.
                reasons.append("eager attention adds its ALiBi twice")
            moved = _moved(own[0], observed)
            other = _moved(usual, observed)
            # Where experts are chosen, rounding to 16 bits alone moves single tokens far.
            is_moved = other.max() > 10 * tolerance if is_exact else other.median() > _ROUNDED
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


def _difference(own: Tensor, rows: Rows, tolerance: float) -> str | None:
    place = slice(rows.first, rows.stop)
    if own.shape[:2] != rows.patterns.shape[:2] or rows.stop > own.shape[2]:
        return f"has patterns of shape {tuple(rows.patterns.shape)}, not {tuple(own.shape)}"
    error = _distance(own[:, :, place, rows.first_key : rows.stop].float(), rows.patterns)
    if error > tolerance:
        return f"differs from the model's own patterns by {error:.1e}"
    # What no key is shown for must be nothing, and no row may see more than it is allowed to.
    attended = (own[:, :, place].nan_to_num() != 0).any(dim=1)[0]
    is_beyond = attended[:, : rows.first_key].any() or attended.triu(rows.first + 1).any()
    if is_beyond or (attended.sum(dim=-1) > rows.allowed).any():
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
