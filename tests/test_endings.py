"""What heads hold at the end of prompts, against the model's own eager attention."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from catalog.errors import ModelError
from ingest.readers import endings
from ingest.readers.architectures import layout, sizes
from ingest.readers.attention import attention_modules
from ingest.readers.endings import PromptRunner
from ingest.suites._memory import if_it_fits

BEFORE, REST = torch.tensor([7, 9, 11]), torch.randint(3, tiny.VOCABULARY, (4, 3))
PROMPTS = torch.cat([BEFORE.expand(4, -1), REST], dim=1)
SOURCE = len(BEFORE)

Place = tuple[int, int]


@contextlib.contextmanager
def inputs_of_projections(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """The last position of what each layer's output projection is given, [prompt, head, d_head]."""
    found: dict[int, Tensor] = {}
    hooks = []
    for layer, module in attention_modules(model).items():

        def take(_module: nn.Module, args: tuple[Tensor], layer: int = layer) -> None:
            found[layer] = args[0][:, -1].reshape(len(args[0]), sizes(model.config).n_heads, -1)

        projection = module.get_submodule(layout(model.config.model_type, "m").output)
        hooks.append(projection.register_forward_pre_hook(take))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def forced(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, at: Place, source: int
) -> Iterator[None]:
    """One head's attention at the last position is 1 on the source, wherever softmax puts it."""
    layer, head = at
    own = nn.functional.softmax
    is_inside = False

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = own(scores, *args, **kwargs)
        if is_inside:
            n_heads = sizes(model.config).n_heads
            rows = weights.unflatten(0, (-1, n_heads)) if weights.ndim == 3 else weights
            rows = rows.clone()
            rows[:, head, -1] = 0
            rows[:, head, -1, source] = 1
            return rows.reshape(weights.shape)
        return weights

    def enter(*_: object) -> None:
        nonlocal is_inside
        is_inside = True

    def leave(*_: object) -> None:
        nonlocal is_inside
        is_inside = False

    module = attention_modules(model)[layer]
    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "softmax", softmax)
            yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("architecture", [*tiny.CONFIGS, *tiny.VARIANTS])
def test_outputs_equal_those_of_eager_attention(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the ordinary run, and with one head at a time forced onto the source."""
    model = tiny.model(architecture)
    mixed = PromptRunner(model, "m", BEFORE).run(REST)
    model.config._attn_implementation = "eager"
    base = cast("Any", model.base_model)
    with torch.inference_mode(), inputs_of_projections(model) as plain:
        base(PROMPTS, use_cache=False)
    assert set(mixed) == set(attention_modules(model)) == set(plain)
    for layer, expected in plain.items():
        assert_close(mixed[layer].attended, expected.transpose(0, 1))
        source = mixed[layer].source
        if architecture.startswith("deepseek"):
            assert source is None
            continue
        assert source is not None
        for head in range(expected.shape[1]):
            with (
                torch.inference_mode(),
                inputs_of_projections(model) as found,
                forced(model, monkeypatch, (layer, head), SOURCE),
            ):
                base(PROMPTS, use_cache=False)
            group = expected.shape[1] // len(source)
            assert_close(source[head // group], found[layer][:, head])
            for other in set(range(expected.shape[1])) - {head}:
                assert torch.equal(found[layer][:, other], expected[:, other])


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_layer_that_is_not_seen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    runner = PromptRunner(model, "m", BEFORE)
    other = attention_modules(tiny.model("qwen3"))[0]
    layers = attention_modules(model) | {3: other}
    monkeypatch.setattr(endings, "attention_modules", lambda _: layers)
    with pytest.raises(ModelError, match=r"heads of m \(llama\) cannot be read: layer 3 has run"):
        runner.run(REST)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_memory_that_runs_out_is_told_apart_from_other_errors() -> None:
    def fail(error: Exception) -> None:
        raise error

    device = torch.device("cpu")
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert if_it_fits(partial(fail, error), device) is None
    with pytest.raises(RuntimeError, match="shapes differ"):
        if_it_fits(partial(fail, RuntimeError("shapes differ")), device)
    assert if_it_fits(lambda: 3, device) == 3
