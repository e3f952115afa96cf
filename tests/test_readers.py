"""Every supported architecture's heads, proved on a tiny model of it."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from catalog.errors import ModelError
from ingest.readers.architectures import LAYOUTS, layout
from ingest.readers.attention import observing, prove
from ingest.readers.weights import WeightReader

TOKENS = torch.arange(3, 3 + 2 * 30).reshape(2, 30)
SOURCE = 4


def test_every_supported_architecture_is_proved_here() -> None:
    assert set(tiny.CONFIGS) == set(LAYOUTS)


@pytest.mark.parametrize("architecture", sorted(LAYOUTS))
def test_a_heads_matrices_are_what_the_model_computes(architecture: str) -> None:
    """One head alone, its attention forced to one position, makes its layer write x W_V W_O.

    Two inputs are compared by their difference, so that biases cancel.
    """
    model = tiny.model(architecture)
    reader = WeightReader(model, architecture)
    group = reader.n_heads // reader.n_kv_heads
    for head in range(reader.n_heads):
        read, written = _one_head_forced(model, layout(architecture, "").attention, head)
        for index in range(reader.n_layers):
            x = read[index][0, SOURCE] - read[index][1, SOURCE]
            by_reader = x @ reader.values(index)[head // group] @ reader.outputs(index)[head]
            by_model = written[index][0, -1] - written[index][1, -1]
            torch.testing.assert_close(by_reader, by_model, atol=2e-5, rtol=1e-4)


def _one_head_forced(
    model: PreTrainedModel, attention: str, head: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What each layer's attention module reads and writes when only `head` attends, to SOURCE."""

    def forced(
        _module: nn.Module, query: Tensor, _key: Tensor, value: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, None]:
        taken = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out = torch.zeros(*query.shape[:3], value.shape[-1])
        out[:, head] = taken[:, head, SOURCE, None]
        return out.transpose(1, 2).contiguous(), None

    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}

    def hook(index: int) -> Callable[..., None]:
        def record(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            read[index] = args[0] if args else kwargs["hidden_states"]
            written[index] = out[0]

        return record

    AttentionInterface.register("forced", forced)
    AttentionMaskInterface.register("forced", eager_mask)
    model.set_attn_implementation("forced")
    hooks = [
        getattr(layer, attention).register_forward_hook(hook(index), with_kwargs=True)
        for index, layer in enumerate(_layers(model))
    ]
    with torch.inference_mode():
        model(TOKENS, use_cache=False)
    for one in hooks:
        one.remove()
    return read, written


@pytest.mark.parametrize("architecture", [*sorted(LAYOUTS), "stablelm parallel"])
def test_the_first_mlp_reads_its_own_norm(architecture: str) -> None:
    """What the running block's MLP reads and writes is what `first_mlp` makes of the norm's input.

    The norm is found in the running model by its output, which must be what the MLP reads.
    """
    model = tiny.model(architecture)
    reader = WeightReader(model, architecture.split(maxsplit=1)[0])
    block = _layers(model)[0]
    mlp = getattr(block, layout(architecture.split(maxsplit=1)[0], "").mlp)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (args[0], out)

        return hook

    for name, module in [("mlp", mlp), *block.named_children()]:
        if name == "mlp" or "norm" in name or name.startswith("ln_"):
            module.register_forward_hook(record(name))
    with torch.inference_mode():
        model(TOKENS, use_cache=False)
        read, written = seen.pop("mlp")
        before = [x for x, out in seen.values() if torch.equal(out, read)]
        assert len(before) == 1
        torch.testing.assert_close(reader.first_mlp(before[0]), written)


@pytest.mark.parametrize("architecture", sorted(LAYOUTS))
def test_observed_patterns_are_the_models_own(architecture: str) -> None:
    model = tiny.model(architecture)
    prove(model, architecture)
    model.set_attn_implementation("eager")
    seen: dict[int, Tensor] = {}
    allowed: dict[int, Tensor] = {}

    def observe(layer: int, patterns: Tensor, keys: Tensor) -> None:
        seen[layer], allowed[layer] = patterns, keys

    with torch.inference_mode():
        own = model(TOKENS, output_attentions=True, use_cache=False).attentions
        with observing(model, observe):
            model(TOKENS, use_cache=False)
    assert sorted(seen) == list(range(len(own)))
    for layer, expected in enumerate(own):
        torch.testing.assert_close(seen[layer], expected, atol=1e-6, rtol=0)
        possible = (expected > 0).any(dim=1)[0].sum(dim=-1)
        assert torch.equal(allowed[layer], possible)
    assert model.config._attn_implementation == "eager"


def test_an_observer_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    own = model.forward

    def without_mask(*args: object, **kwargs: object) -> object:
        out = own(*args, **kwargs)
        if out.attentions is not None:
            out.attentions = tuple(a.flip(-1) for a in out.attentions)
        return out

    monkeypatch.setattr(model, "forward", without_mask)
    with pytest.raises(ModelError, match=r"llama.*cannot be observed: layer 0 differs"):
        prove(model, "m")


def test_an_unsupported_architecture_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"'bert', which is not supported.*gpt2.*llama"):
        layout("bert", "m")


def _layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    assert isinstance(layers, torch.nn.ModuleList)
    return layers
