"""Every supported architecture's heads, proved on a tiny model of it."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from observed import Whole, whole
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from catalog.errors import ModelError
from ingest.readers.architectures import LAYOUTS, layout
from ingest.readers.attention import has_interface, observing, prove
from ingest.readers.tensors import SafetensorsTensors, skeleton
from ingest.readers.weights import HeadReader

TOKENS = torch.arange(3, 3 + 2 * 30).reshape(2, 30)
SOURCE = 4
ALL = [*sorted(LAYOUTS), *tiny.VARIANTS]
WITHOUT_INTERFACE = [
    *("bloom", "codegen", "falcon", "falcon multi-head", "falcon multi-query", "gpt_neo", "gptj"),
    *("mpt", "qwen3_5_text", "qwen3_next", "stablelm", "stablelm parallel", "xglm"),
]


def test_every_supported_architecture_is_proved_here() -> None:
    assert set(tiny.CONFIGS) == set(LAYOUTS)


@dataclass
class Seen:
    """What one attention module read, wrote, and gave to the softmax."""

    read: Tensor
    written: Tensor
    scores: Tensor


@pytest.mark.parametrize("architecture", ALL)
def test_a_heads_output_is_what_the_model_computes(architecture: str) -> None:
    """One head alone, its attention forced to one position: its layer writes x W_V W_O."""
    model = tiny.model(architecture, attn_implementation="eager")
    reader = HeadReader.of_loaded(model, architecture)
    if reader.heads(0).absent.get("value", "").startswith("multi-head latent"):
        return
    for head in range(reader.sizes.n_heads):
        for index, seen in _forced(model, head).items():
            one = reader.heads(index)
            assert one.value is not None
            assert one.output is not None
            z = seen.read[:, SOURCE] @ one.value[one.kv_head(head)]
            if one.value_bias is not None:
                z = z + one.value_bias[one.kv_head(head)]
            if "gate" in reader._rows:
                z = z * torch.sigmoid(seen.read[:, -1] @ reader.gate(index)[head])
            expected = z @ one.output[head]
            if one.output_bias is not None:
                expected = expected + one.output_bias
            torch.testing.assert_close(expected, seen.written[:, -1], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ALL)
def test_a_heads_scores_are_what_the_model_computes(architecture: str) -> None:
    """At position 0, where rotary embeddings turn nothing: the scores of x W_Q and x W_K.

    Two inputs are compared by their difference, so that the bias of the position cancels.
    """
    model = tiny.model(architecture, attn_implementation="eager")
    reader = HeadReader.of_loaded(model, architecture)
    name = architecture.split(maxsplit=1)[0]
    for index, seen in _forced(model, 0).items():
        one = reader.heads(index)
        if one.query is None or one.key is None:
            assert set(one.absent) & {"query", "key"}
            continue
        attention = _layers(model)[index].get_submodule(layout(name, "").attention)
        x = seen.read[:, 0]
        query = torch.einsum("bd,hdk->bhk", x, one.query)
        key = torch.einsum("bd,hdk->bhk", x, one.key)
        if one.query_bias is not None and one.key_bias is not None:
            query, key = query + one.query_bias, key + one.key_bias
        query, key = _normed(attention, "q_norm", query), _normed(attention, "k_norm", key)
        scaling = getattr(attention, "scaling", None) or reader.scaling(index)
        rotary = getattr(model.base_model, "rotary_emb", None)
        scaling *= getattr(rotary, "attention_scaling", 1) ** 2  # of YaRN, also at position 0
        expected = scaling * (query * key.repeat_interleave(one.group, dim=1)).sum(dim=-1)
        cap = getattr(model.config, "attn_logit_softcapping", None)
        if cap:
            expected = cap * torch.tanh(expected / cap)
        found = seen.scores[:, :, 0, 0]
        if seen.scores.shape[-1] > seen.scores.shape[-2]:
            # A sink stands last, and the model has subtracted the maximum from all.
            found = found - seen.scores[:, :, 0, -1]
        torch.testing.assert_close(
            expected[0] - expected[1], found[0] - found[1], atol=5e-5, rtol=1e-4
        )


def _normed(attention: nn.Module, name: str, x: Tensor) -> Tensor:
    """Queries or keys [batch, head, d_key] as the attention module norms them, where it does."""
    norm = getattr(attention, name, None)
    if norm is None:
        return x
    if norm.weight.shape[-1] == x.shape[-1]:
        return cast("Tensor", norm(x))
    return cast("Tensor", norm(x.flatten(1)).reshape(x.shape))


def _forced(model: PreTrainedModel, head: int) -> dict[int, Seen]:
    """A run in which only `head` attends, and only to SOURCE: the softmax itself is replaced.

    Every architecture's eager attention calls it, also those that call no registered function.
    """
    n_heads, length = model.config.num_attention_heads, TOKENS.shape[1]
    scores: list[Tensor] = []
    softmax = torch.nn.functional.softmax

    def forced(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if logits.ndim < 3 or logits.shape[-2] != length:
            return softmax(logits, *args, **kwargs)  # a router's
        scores.append(logits.reshape(len(TOKENS), n_heads, length, -1))
        out = torch.zeros_like(scores[-1])
        out[:, head, :, SOURCE] = 1
        return out.reshape(logits.shape)

    seen: dict[int, Seen] = {}

    def hook(index: int) -> Callable[..., None]:
        def record(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if scores:
                read = args[0] if args else kwargs["hidden_states"]
                written = out[0]
                if model.config.model_type == "bloom":
                    written = written - args[1]  # its attention adds the residual itself
                seen[index] = Seen(read=read, written=written, scores=scores.pop())

        return record

    name = layout(model.config.model_type, "").attention
    hooks = [
        layer.get_submodule(name).register_forward_hook(hook(index), with_kwargs=True)
        for index, layer in enumerate(_layers(model))
        if _has(layer, name)
    ]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", forced)
        model(TOKENS, use_cache=False)
    for one in hooks:
        one.remove()
    kinds = getattr(model.config, "layer_types", None) or []
    assert len(seen) == model.config.num_hidden_layers - kinds.count("linear_attention")
    return seen


def test_latent_attention_has_no_value_matrix_and_says_so() -> None:
    reader = HeadReader.of_loaded(tiny.model("deepseek_v3"), "m")
    heads = reader.heads(0)
    assert heads.value is heads.key is heads.query is None
    assert heads.output is not None
    assert "latent" in heads.absent["value"]


def test_linear_attention_layers_have_no_heads_and_say_so() -> None:
    reader = HeadReader.of_loaded(tiny.model("qwen3_next"), "m")
    heads = reader.heads(0)
    assert heads.query is heads.output is None
    assert heads.absent["query"] == "this layer has no softmax attention"
    assert reader.heads(1).query is not None


@pytest.mark.parametrize("architecture", ALL)
def test_the_first_mlp_reads_its_own_norm(architecture: str) -> None:
    """What the running block's MLP reads and writes is what `first_mlp` makes of the norm's input.

    The norm is found in the running model by its output, which must be what the MLP reads.
    """
    model = tiny.model(architecture)
    one = layout(architecture.split(maxsplit=1)[0], "")
    reader = HeadReader.of_loaded(model, architecture)
    block = _layers(model)[0]
    steps = [getattr(block, name) for name in one.mlp]
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
            written = (out[0] if isinstance(out, tuple) else out).clone()  # some add to it in place
            if "residual" in _module.forward.__code__.co_varnames:
                written = written - args[1]
            seen[name] = (args[0], written)

        return hook

    watched = {"first": steps[0], "last": steps[-1]}
    norms = {n: m for n, m in block.named_children() if "norm" in n or n.startswith("ln_")}
    for name, module in (watched | norms).items():
        module.register_forward_hook(record(name))
    with torch.inference_mode():
        model(TOKENS, use_cache=False)
        read, written = seen.pop("first")[0], seen.pop("last")[1]
        before = [x for x, out in seen.values() if torch.equal(out.reshape(read.shape), read)]
        if not one.mlp_norm:
            assert not before
            before = [read]
        assert len(before) == 1
        for sequence, expected in zip(before[0], written.reshape(before[0].shape), strict=True):
            torch.testing.assert_close(reader.first_mlp(sequence), expected)


@pytest.mark.parametrize("architecture", ALL)
def test_a_checkpoint_is_read_as_transformers_loads_it(architecture: str, tmp_path: Path) -> None:
    """Every tensor that a reader takes from sharded safetensors, in transformers' own naming."""
    model = tiny.model(architecture)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = AutoConfig.from_pretrained(tmp_path)
    shape = skeleton(config)
    lazy = HeadReader(SafetensorsTensors(tmp_path, "m", shape), shape, "m")
    loaded = HeadReader.of_loaded(model, "m")
    for layer in range(3):
        ours, theirs = lazy.heads(layer), loaded.heads(layer)
        for part, matrix in vars(theirs).items():
            if isinstance(matrix, Tensor):
                assert torch.equal(vars(ours)[part], matrix), part
            else:
                assert vars(ours)[part] == matrix
    ids = torch.tensor([5, 3, 200])
    assert torch.equal(lazy.embedding(ids), loaded.embedding()[ids])
    assert torch.equal(lazy.unembedding(), loaded.unembedding())
    x = loaded.embedding(ids)
    torch.testing.assert_close(lazy.first_mlp(x), loaded.first_mlp(x))
    torch.testing.assert_close(lazy.normalised(1, x), loaded.normalised(1, x))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    model = tiny.model("phi3")
    model.save_pretrained(tmp_path)
    shape = skeleton(model.config)
    reader = HeadReader(SafetensorsTensors(tmp_path, "m", shape), shape, "m")
    reader.heads(1, ["value"])
    assert reader.bytes_read == 4 * 3 * 8 * 48
    reader.embedding(torch.tensor([7]))
    assert reader.bytes_read == 4 * 3 * 8 * 48 + 4 * 48


@pytest.mark.parametrize("architecture", ALL)
def test_observed_patterns_are_the_models_own(architecture: str) -> None:
    """Every layer with softmax heads once and in order, and the keys that its mask leaves."""
    model = tiny.model(architecture)
    assert has_interface(model) == (architecture not in WITHOUT_INTERFACE)
    prove(model, architecture)
    before = model.config._attn_implementation
    seen = Whole()
    with torch.inference_mode():
        usual = model(TOKENS, use_cache=False).logits
        with observing(model, seen, n_rows=7):
            observed = model(TOKENS, use_cache=False).logits
        assert model.config._attn_implementation == before
        model.config._attn_implementation = "eager"
        own = model(TOKENS, output_attentions=True, use_cache=False).attentions
    torch.testing.assert_close(observed, usual, atol=1e-4, rtol=1e-4)
    kinds = getattr(model.config, "layer_types", None) or []
    expected = [i for i in range(3) if kinds[i : i + 1] != ["linear_attention"]]
    assert list(seen.blocks) == expected
    all_patterns, all_allowed = seen.patterns.values(), seen.allowed.values()
    for patterns, theirs, keys in zip(all_patterns, own, all_allowed, strict=True):
        torch.testing.assert_close(patterns, theirs, rtol=0, atol=1e-5)
        assert torch.equal(patterns == 0, theirs == 0)
        assert torch.equal(keys, (theirs > 0).any(dim=1)[0].sum(dim=-1))
        if architecture != "gpt_oss":
            torch.testing.assert_close(patterns.sum(dim=-1), torch.ones(patterns.shape[:-1]))


@pytest.mark.parametrize("architecture", WITHOUT_INTERFACE)
def test_observed_patterns_are_what_heads_average_values_with(architecture: str) -> None:
    """What the softmax gives inside the module is what is observed, but for a sink's column."""
    model = tiny.model(architecture)
    softmaxed: list[Tensor] = []
    softmax = torch.nn.functional.softmax
    n = TOKENS.shape[1]

    def recorded(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = softmax(logits, *args, **kwargs)
        if logits.ndim > 2 and logits.shape[-2] == n:
            softmaxed.append(out.reshape(2, -1, n, out.shape[-1])[..., :n])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", recorded)
        seen = whole(model, TOKENS).patterns
    assert seen
    for patterns, theirs in zip(seen.values(), softmaxed, strict=True):
        assert torch.equal(patterns, theirs)


def test_an_unsupported_architecture_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"'bert', which is not supported.*gpt2.*llama"):
        layout("bert", "m")


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.get_submodule(layout(model.config.model_type, "").layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


_READ_ALL = """
import sys
from pathlib import Path
from transformers import LlamaConfig
from benchmarks import _checkpoint
from ingest.readers.tensors import SafetensorsTensors, skeleton
from ingest.readers.weights import HeadReader

folder, n_layers = Path(sys.argv[1]), int(sys.argv[2])
config = LlamaConfig(vocab_size=100, hidden_size=1024, intermediate_size=4096,
                     num_hidden_layers=n_layers, num_attention_heads=8, num_key_value_heads=8)
if sys.argv[3] == "write":
    _checkpoint.write(folder, config, is_real=lambda name: True)
else:
    model = skeleton(config)
    reader = HeadReader(SafetensorsTensors(folder, "m", model), model, "m")
    for layer in range(n_layers):
        reader.heads(layer)
    print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


def test_resident_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """By the kernel's account, in processes of their own; twenty layers more are 160 MB on disk."""
    peaks = {}
    for n_layers in (4, 24):
        for task in ("write", "read"):
            done = subprocess.run(
                [sys.executable, "-c", _READ_ALL, tmp_path / str(n_layers), str(n_layers), task],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        peaks[n_layers] = int(done.stdout) * 1024
    assert peaks[24] - peaks[4] < 40e6
