"""What every head holds at the end of a prompt, before W_O, while the model runs.

The values that a head averages pass through the model's cache of keys and values; what attention
has made of them, gated where a model gates it, is the input of its output projection. Both are
taken there, so that biases, clipping and norms are the model's own.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from catalog.errors import ModelError
from ingest.readers.architectures import Layout, layout, sizes
from ingest.readers.attention import attention_modules

KeysAndValues = Mapping[int, tuple[Tensor, Tensor]]

LATENT = "multi-head latent attention: its values come from a latent after the cache"


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """What a layer's heads hold at the last position of each prompt, in the model's dtype.

    Their outputs, of which `output_bias` is no part, are these rows @ W_O.
    """

    attended: Float[Tensor, "head prompt d_head"]
    """As attention has mixed it in the ordinary run."""
    source: Float[Tensor, "kv_head prompt d_head"] | None
    """With attention all on the source; per query head where outputs are gated. None where the
    values cannot be read."""


class PromptRunner:
    """Runs prompts that begin alike; what they share is computed once."""

    def __init__(self, model: PreTrainedModel, name: str, before: Int[Tensor, " token"]) -> None:
        """Run what stands before the source.

        Args:
            model: On its device, in evaluation mode.
            name: What it is called in errors.
            before: Token ids that all prompts begin with; at least one.
        """
        self._model, self._name = model, name
        self._before = before
        self._prefix: KeysAndValues = {}
        # The state of linear attention is no list of keys and values: it is made anew each time.
        kinds = getattr(model.config, "layer_types", None) or ()
        if "linear_attention" not in kinds:
            cache = DynamicCache(config=model.config)
            with torch.inference_mode():
                model.base_model(before[None], past_key_values=cache, use_cache=True)
            layers = cast("list[Any]", cache.layers)
            self._prefix = {n: (layer.keys, layer.values) for n, layer in enumerate(layers)}

    def run(self, rest: Int[Tensor, "prompt token"]) -> dict[int, Mixed]:
        """What the heads of every layer that has any hold at the end.

        Args:
            rest: The prompts from the source's token on.

        Raises:
            ModelError: If a layer's heads were not seen.
        """
        tokens, position = rest, 0
        if not self._prefix:
            before = self._before.expand(len(rest), -1)
            tokens, position = torch.cat([before, rest], dim=1), before.shape[1]
        values = _Values(self._model.config, self._prefix, position)
        with torch.inference_mode(), _taking(self._model) as taken:
            self._model.base_model(tokens, past_key_values=values, use_cache=True)
        size, is_latent = sizes(self._model.config), _layout(self._model).latent
        mixed = {}
        for layer in attention_modules(self._model):
            if layer not in taken.inputs or layer not in values.seen:
                raise ModelError(
                    f"the outputs of the heads of {self._name} "
                    f"({self._model.config.model_type}) cannot be read: layer {layer} has run "
                    "without its output projection or without a cache"
                )
            source = None if is_latent else values.seen[layer]
            if source is not None and layer in taken.gates:
                gate = _by_head(taken.gates[layer], size.n_heads)
                source = source.repeat_interleave(len(gate) // len(source), dim=0) * gate.sigmoid()
            attended = _by_head(taken.inputs[layer], size.n_heads)
            mixed[layer] = Mixed(attended=attended, source=source)
        return mixed


class _Values(DynamicCache):
    """Gives attention what came before, and keeps the values at one position of what comes."""

    def __init__(self, config: PreTrainedConfig, prefix: KeysAndValues, position: int) -> None:
        super().__init__(config=config)
        self._prefix, self._position = prefix, position
        self.seen: dict[int, Float[Tensor, "kv_head prompt d_head"]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.seen[layer_idx] = value_states[:, :, self._position].transpose(0, 1).contiguous()
        if not self._prefix:
            return key_states, value_states
        keys, values = (one.expand(len(key_states), -1, -1, -1) for one in self._prefix[layer_idx])
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - named by callers
        return next((keys.shape[2] for keys, _ in self._prefix.values()), 0)

    def get_mask_sizes(
        self,
        query_length: int,
        layer_idx: int = 0,  # noqa: ARG002 - named by callers
    ) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


@dataclass(frozen=True)
class _Taken:
    """At the last position, by layer."""

    inputs: dict[int, Float[Tensor, "prompt head_d_head"]]
    gates: dict[int, Float[Tensor, "prompt head_d_head"]]


@contextlib.contextmanager
def _taking(model: PreTrainedModel) -> Iterator[_Taken]:
    """Let the inputs of output projections, and gates, be taken while the model runs."""
    one, size = _layout(model), sizes(model.config)
    gate_rows = one.rows(model.config, size).get("gate") if one.rows else None
    taken = _Taken({}, {})

    def before_output(layer: int, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taken.inputs[layer] = args[0][:, -1].clone()

    def after_query(layer: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
        assert gate_rows is not None  # noqa: S101 - narrows the type
        taken.gates[layer] = output[:, -1, gate_rows.flatten().to(output.device)]

    hooks = []
    try:
        for layer, module in attention_modules(model).items():
            output = module.get_submodule(one.output)
            hooks.append(output.register_forward_pre_hook(partial(before_output, layer)))
            if gate_rows is not None:
                query = module.get_submodule(one.query)
                hooks.append(query.register_forward_hook(partial(after_query, layer)))
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def _layout(model: PreTrainedModel) -> Layout:
    return layout(model.config.model_type, "the model")


def _by_head(
    rows: Float[Tensor, "prompt head_d_head"], n_heads: int
) -> Float[Tensor, "head prompt d_head"]:
    return rows.reshape(len(rows), n_heads, -1).transpose(0, 1).contiguous()
