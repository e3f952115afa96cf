"""What heads of a running model write, layer by layer, and how it reaches the logits.

A hook on each layer's output projection sees what the projection reads, head beside head and
n_heads * d_head wide, gates applied; one on the norm after the attention, where there is one, what
is added to the residual stream; one on the final norm, its scale. They stand beside other hooks on
the attention, in the same pass.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from catalog.errors import ModelError
from ingest.readers.architectures import Layout, layout
from ingest.written import FrozenNorm

_PROOF_LENGTH = 24
_PROOF_LOGITS = 4_096
"""Of how many tokens, at most, logits are compared."""
_PROOF_TOLERANCE = 1e-4
"""Of a vector's length in float32; wider where the model runs in 16 bits."""
_ROUNDINGS = 4
"""How many times a 16-bit format's precision two ways of computing may lie apart."""

_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one layer's attention writes, in the model's dtype but for the scale."""

    z: Float[Tensor, "batch token head d_head"]
    added: Float[Tensor, "batch token d_model"]
    scale: Float[Tensor, "batch token"] | None
    """Of the norm after the attention; None where there is none."""


LayerObserver = Callable[[int, Written], None]
ScaleObserver = Callable[[Float[Tensor, "batch token"]], None]


class OutputReader:
    """Sees what a model's heads write while it runs."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the modules; nothing runs.

        Raises:
            ModelError: If the architecture is not supported.
        """
        self._model = model
        self._layout: Layout = layout(model.config.model_type, "the model")
        self.n_layers: int = model.config.num_hidden_layers
        self.n_heads: int = model.config.num_attention_heads
        self.d_model: int = model.config.hidden_size
        self.projections: dict[int, nn.Module] = {}
        """By layer; a hybrid's layers of another kind have none."""
        self.norms: dict[int, FrozenNorm] = {}
        """After the attention of each layer, where there is one."""
        self._norm_modules: dict[int, nn.Module] = {}
        post_norm = self._layout.attention_post_norm
        for index, block in enumerate(self.blocks):
            with contextlib.suppress(AttributeError):
                path = f"{self._layout.attention}.{self._layout.output}"
                self.projections[index] = block.get_submodule(path)
                if post_norm:
                    self._norm_modules[index] = block.get_submodule(post_norm)
        for index, norm in self._norm_modules.items():
            self.norms[index] = FrozenNorm.of(norm, self.d_model, self._model.device)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self._model.get_submodule(self._layout.layers).children())

    def matrices(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of each head, in float32."""
        weight = self.projections[layer].weight
        assert isinstance(weight, Tensor)  # noqa: S101 - narrows the type
        rows = weight if self._layout.transposed else weight.mT
        return rows.detach().float().unflatten(0, (self.n_heads, -1))

    def norm_module(self, layer: int) -> nn.Module | None:
        """What a layer's attention goes through before it is added."""
        return self._norm_modules.get(layer)

    # --- the way to the logits ---

    @cached_property
    def no_attribution(self) -> str | None:
        """Why logits are no sum of what heads write, even with norms' scales given; None if so."""
        config = self._model.config
        if getattr(config, "apply_residual_connection_post_layernorm", False):
            return "the residual stream itself is normed in every layer"
        if config.model_type == "opt" and not config.do_layer_norm_before:
            return "the residual stream itself is normed in every layer"
        if self.final_module is None:
            return "there is no norm before the unembedding"
        if self._model.get_output_embeddings().weight.shape[1] != self.d_model:
            return "the residual stream is projected before the unembedding"
        return None

    @property
    def final_module(self) -> nn.Module | None:
        """The norm before the unembedding."""
        parent, _, name = self._layout.final_norm.rpartition(".")
        found: nn.Module | None = getattr(self._model.get_submodule(parent), name)
        return found

    @cached_property
    def final_norm(self) -> FrozenNorm:
        """The norm before the unembedding, which has to be there."""
        norm = self.final_module
        assert norm is not None  # noqa: S101 - narrows the type
        return FrozenNorm.of(norm, self.d_model, self._model.device)

    @property
    def residual_multiplier(self) -> float:
        """By what a layer multiplies its attention's output before adding it."""
        name = self._layout.residual_multiplier
        return getattr(self._model.config, name) if name else 1.0

    @property
    def logit_multiplier(self) -> float:
        """What logits are multiplied by, before any cap."""
        config, names = self._model.config, self._layout
        if names.logit_divisor:
            return 1 / getattr(config, names.logit_divisor)
        return getattr(config, names.logit_multiplier) if names.logit_multiplier else 1.0

    def targets(self, tokens: Int[Tensor, "*token"]) -> Float[Tensor, "*token d_model"]:
        """The directions that raise these tokens' logits when an attention writes them.

        The final norm's scale is missing, and all multipliers are in.
        """
        return self._target(self._unembedding[tokens].float())

    @cached_property
    def mean_target(self) -> Float[Tensor, " d_model"]:
        """The mean of the directions of all tokens."""
        # A few rows at a time: a float32 copy of all could be gigabytes.
        sums = [few.double().sum(dim=0) for few in self._unembedding.split(_ROWS_AT_ONCE)]
        mean = torch.stack(sums).sum(dim=0) / len(self._unembedding)
        return self._target(mean.float())

    def _target(self, rows: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        multiplier = self.residual_multiplier * self.logit_multiplier
        return self.final_norm.pulled_back(rows) * multiplier

    @property
    def _unembedding(self) -> Float[Tensor, "vocab d_model"]:
        return self._model.get_output_embeddings().weight.detach()

    # --- while the model runs ---

    @contextlib.contextmanager
    def watching(
        self, on_layer: LayerObserver, on_scale: ScaleObserver = lambda _: None
    ) -> Iterator[None]:
        """Tell what each layer writes, and at the end the final norm's scale.

        The scale is told where logits can be attributed. The hooks see every run of this model,
        whichever thread begins it.
        """
        hooks = []
        read: dict[int, Tensor] = {}
        # Before there are hooks, which copies of the norms would have too.
        final = None if self.no_attribution else self.final_norm

        def projected(layer: int, _module: nn.Module, args: Any, output: Tensor) -> None:
            z = args[0].reshape(*output.shape[:-1], self.n_heads, -1)
            if layer in self.norms:
                read[layer] = z
            else:
                on_layer(layer, Written(z=z, added=output, scale=None))

        def normed(layer: int, _module: nn.Module, args: Any, output: Tensor) -> None:
            scale = self.norms[layer].scale(args[0], output)
            on_layer(layer, Written(z=read.pop(layer), added=output, scale=scale))

        def finished(_module: nn.Module, args: Any, output: Tensor) -> None:
            assert final is not None  # noqa: S101 - narrows the type
            on_scale(final.scale(args[0], output))

        try:
            for layer, module in self.projections.items():
                hooks.append(module.register_forward_hook(partial(projected, layer)))
            for layer, module in self._norm_modules.items():
                hooks.append(module.register_forward_hook(partial(normed, layer)))
            if final is not None and self.final_module is not None:
                hooks.append(self.final_module.register_forward_hook(finished))
            yield
        finally:
            for one in hooks:
                one.remove()


def prove_outputs(model: PreTrainedModel, name: str) -> None:
    """Verify on a short input that what heads write is read as the model adds it up.

    In every layer with heads, the sum of their outputs and the bias, through the norm after the
    attention where there is one, must be what is added to the residual stream. Where logits are
    attributed, the final norm with its scale given must lead to the model's own logits, and the
    residual stream that it reads must hold what each attention added, once, times the residual
    multiplier, whatever else later layers make of it. What is NaN must be NaN both ways.

    Raises:
        ModelError: Naming the model and what differed.
    """
    reader = OutputReader(model)
    exact = model.dtype == torch.float32
    tolerance = _PROOF_TOLERANCE if exact else _ROUNDINGS * torch.finfo(model.dtype).eps
    generator = torch.Generator().manual_seed(0)
    context = getattr(model.config, "max_position_embeddings", None) or _PROOF_LENGTH
    shape = (1, min(_PROOF_LENGTH, context))
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
    with torch.inference_mode():
        reason = _sums_differ(reader, model, tokens, tolerance)
    if not reason and not reader.no_attribution:
        with torch.inference_mode():
            reason = _logits_differ(reader, model, tokens, tolerance)
        reason = reason or _paths_differ(reader, model, tokens, tolerance)
    if reason:
        raise ModelError(
            f"what the heads of {name} ({model.config.model_type}) write cannot be read: {reason}"
        )


def _sums_differ(
    reader: OutputReader, model: PreTrainedModel, tokens: Tensor, tolerance: float
) -> str | None:
    gaps: dict[int, float] = {}

    def compare(layer: int, written: Written) -> None:
        matrices, bias = reader.matrices(layer), getattr(reader.projections[layer], "bias", None)
        summed = torch.einsum("bthd,hdm->btm", written.z.float(), matrices)
        summed = summed if bias is None else summed + bias.float()
        if written.scale is not None:
            norm = reader.norms[layer]
            summed = norm.unscaled(summed) * written.scale[..., None] + norm.bias
        gaps[layer] = _gap(written.added, summed)

    with reader.watching(compare):
        model.base_model(tokens, use_cache=False)
    if list(gaps) != list(reader.projections) or not gaps:
        return f"layers {list(reader.projections)} were expected in order, seen were {list(gaps)}"
    layer = max(gaps, key=lambda one: gaps[one])
    if gaps[layer] > tolerance:
        return (
            f"in layer {layer} their sum is off what the attention adds by {gaps[layer]:.1e} of "
            "its size"
        )
    return None


def _logits_differ(
    reader: OutputReader, model: PreTrainedModel, tokens: Tensor, tolerance: float
) -> str | None:
    streams: list[Tensor] = []
    scales: list[Tensor] = []
    with _residual_stream(reader, streams), reader.watching(lambda *_: None, scales.append):
        own = model(tokens, use_cache=False).logits
    if len(streams) != 1:
        return f"the norm before the unembedding runs {len(streams)} times"
    norm, head = reader.final_norm, model.get_output_embeddings()
    some = slice(None, None, -(-own.shape[-1] // _PROOF_LOGITS))
    normed = norm.unscaled(streams[0]) * scales[0][..., None] + norm.bias
    logits = normed @ head.weight[some].float().mT
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[some].float()
    logits = logits * reader.logit_multiplier
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    gap = _gap(own[..., some], logits)
    if gap > tolerance:
        return f"the final norm with its scale given moves logits by {gap:.1e} of their size"
    return None


def _paths_differ(
    reader: OutputReader, model: PreTrainedModel, tokens: Tensor, tolerance: float
) -> str | None:
    """What of each attention's output is in the final residual stream, by differentiation.

    Whatever a block's parts read is cut off, so that only the residual stream is left between an
    attention and the final norm.
    """
    added: dict[int, Tensor] = {}
    streams: list[Tensor] = []
    hooks = []

    def start(layer: int, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        added[layer] = output.detach().requires_grad_()
        return added[layer].clone()

    try:
        for layer, projection in reader.projections.items():
            module = reader.norm_module(layer) or projection
            hooks.append(module.register_forward_hook(partial(start, layer)))
        for block in reader.blocks:
            # Dropout stands between a part and the stream; it does nothing here.
            parts = [part for part in block.children() if not isinstance(part, nn.Dropout)]
            hooks += [part.register_forward_pre_hook(_cut_off, with_kwargs=True) for part in parts]
        with torch.inference_mode(mode=False), torch.enable_grad():
            with _residual_stream(reader, streams):
                model.base_model(tokens, use_cache=False)
            generator = torch.Generator().manual_seed(1)
            random = torch.randn(streams[0].shape, generator=generator)
            probe = random.to(streams[0])
            found = torch.autograd.grad(streams[0], list(added.values()), probe, allow_unused=True)
    finally:
        for one in hooks:
            one.remove()
    for layer, gradient in zip(added, found, strict=True):
        expected = probe.float() * reader.residual_multiplier
        gap = torch.inf if gradient is None else _gap(expected, gradient)
        if gap > tolerance:
            return (
                f"what the attention of layer {layer} adds does not stand in the final residual "
                f"stream as it was added: it is off by {gap:.1e} of its size"
            )
    return None


def _cut_off(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Only what a part reads first: some take the residual stream besides, and add it."""
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].detach()}


@contextlib.contextmanager
def _residual_stream(reader: OutputReader, streams: list[Tensor]) -> Iterator[None]:
    module = reader.final_module
    assert module is not None  # noqa: S101 - narrows the type
    hook = module.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    try:
        yield
    finally:
        hook.remove()


def _gap(own: Float[Tensor, "*token n"], other: Float[Tensor, "*token n"]) -> float:
    """The largest distance of two tokens' vectors, as a share of the longest vector."""
    both = own.isnan() & other.isnan()
    own, other = (one.double().masked_fill(both, 0) for one in (own, other))
    gap = (own - other).norm(dim=-1).max() / own.norm(dim=-1).max().clamp_min(1e-30)
    return float(gap.nan_to_num(nan=torch.inf))
