"""What heads write, against sums that are formed head by head with norms written out."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import tiny
import torch
from explicit import NORMED_UPDATES, Array, Explicit, array, explicit, inputs_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from catalog.errors import ModelError
from ingest import outputs
from ingest.metrics import OUTPUT_METRICS
from ingest.outputs import OutputSums
from ingest.readers import loading
from ingest.readers.architectures import layout
from ingest.readers.attention import observing
from ingest.readers.outputs import OutputReader, prove_outputs
from ingest.readers.source import resolve
from ingest.written import FrozenNorm, HeadOutputs

TOKENS = torch.arange(3 * 14).reshape(3, 14) * 5 % 29 + 3  # some of them several times
SHORT = torch.arange(60, 69)[None]
EVERY = [*tiny.CONFIGS, *tiny.VARIANTS]
MULTIPLIERS = {
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 4.0},
    "granitemoe": {"residual_multiplier": 0.3, "logits_scaling": 0.5},
    "cohere": {"logit_scale": 0.7},
    "cohere2": {"logit_scale": 1.9},
}


@pytest.fixture(autouse=True)
def _multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in MULTIPLIERS.items():
        monkeypatch.setitem(tiny.CONFIGS, name, tiny.CONFIGS[name] | numbers)


def measured(model: PreTrainedModel, *batches: Tensor) -> OutputSums:
    sums = OutputSums(OutputReader(model))
    with torch.inference_mode(), sums.watching():
        for tokens in batches:
            sums.begin(tokens)
            model.base_model(tokens, use_cache=False)
            sums.end()
    return sums


def assert_close(found: dict[str, Tensor], expected: dict[str, Array], share: float = 1e-5) -> None:
    """Within a share of the metric's largest value, float32's precision being that of sums."""
    assert set(found) == set(expected) == set(OUTPUT_METRICS)
    for name, values in found.items():
        assert values.dtype == torch.float64
        atol = share * float(np.nanmax(np.abs(expected[name])))
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("architecture", EVERY)
def test_scores_are_those_of_outputs_formed_one_by_one(architecture: str) -> None:
    model = tiny.model(architecture)
    prove_outputs(model, "m")
    sums = measured(model, TOKENS, SHORT)
    assert not sums.undefined
    assert_close(sums.scores(), explicit(model, TOKENS, SHORT))


@pytest.mark.parametrize("architecture", EVERY)
def test_shares_of_a_layer_and_its_bias_sum_to_one(architecture: str) -> None:
    model = tiny.model(architecture)
    with torch.no_grad():
        for projection in OutputReader(model).projections.values():
            if isinstance(getattr(projection, "bias", None), Tensor):
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type] # an nn.Module's attribute
    shares = measured(model, TOKENS).scores()["residual_share"].sum(dim=1)
    with_heads = list(OutputReader(model).projections)
    assert shares[with_heads].numpy() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "mlp"),
    [
        ("gpt2", "mlp"),
        ("llama", "mlp"),
        ("gemma2", "post_feedforward_layernorm"),
        ("gpt_neox", "mlp"),
        ("olmo2", "post_feedforward_layernorm"),
        ("granite", "mlp"),
        ("cohere", "mlp"),
        ("phi", "mlp"),
        ("nemotron", "mlp"),
    ],
)
def test_parts_sum_to_the_models_own_logits(architecture: str, mlp: str) -> None:
    model = tiny.model(architecture)
    names = layout(architecture, "m")
    blocks = list(model.get_submodule(names.layers).children())
    sizes = []
    for tokens in TOKENS[:, None]:
        with inputs_of(blocks[:1]) as read, _outputs(blocks, mlp) as written:
            one = Explicit(model, tokens)
        # The embedding, every MLP and every attention's bias, as the final norm lets them through.
        rest = array(read[blocks[0]]) + sum(written) * one.residual
        for heads, _, whole in one.parts.values():
            if architecture not in NORMED_UPDATES:
                rest = rest + (whole - heads.sum(axis=2)) * one.residual
        without_heads = one.next_token(one.to_logits(rest) + one.constant * one.logit)
        own = one.next_token(one.logits)
        if architecture == "gemma2":
            cap = model.config.final_logit_softcapping
            own = cap * np.arctanh(own / cap)
        found = float(measured(model, tokens).scores()["direct_logit_attribution"].sum())
        assert found == pytest.approx((own - without_heads).mean(), abs=1e-5 * np.abs(own).max())
        sizes.append(abs(found) / np.abs(own).max())
    assert max(sizes) > 1e-2


@contextmanager
def _outputs(blocks: list[nn.Module], part: str) -> Iterator[list[Array]]:
    written: list[Array] = []

    def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
        written.append(array(out))

    hooks = [block.get_submodule(part).register_forward_hook(hook) for block in blocks]
    try:
        yield written
    finally:
        for one in hooks:
            one.remove()


# Batches.


def test_batches_that_were_not_ended_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gemma2")
    whole = measured(model, TOKENS).scores()
    sums = OutputSums(OutputReader(model))
    last = model.model.layers[2].self_attn.o_proj
    with torch.inference_mode(), sums.watching():
        sums.begin(TOKENS)
        with monkeypatch.context() as patch:
            patch.setattr(last, "forward", lambda _: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                model.base_model(TOKENS, use_cache=False)
        for tokens in (TOKENS[:1], TOKENS[1:]):
            sums.begin(tokens)
            model.base_model(tokens, use_cache=False)
            sums.end()
    assert_close(sums.scores(), {name: one.numpy() for name, one in whole.items()}, 1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_long_sequences_are_taken_in_pieces(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(architecture)
    whole = measured(model, TOKENS, SHORT).scores()
    # 13 positions of 3 sequences: the last piece has one position and no token after it.
    monkeypatch.setattr(outputs, "_MAX_BYTES", 4 * 60 * 3 * 13)
    assert_close(
        measured(model, TOKENS, SHORT).scores(),
        {name: one.numpy() for name, one in whole.items()},
        1e-6,
    )


def test_patterns_and_outputs_are_seen_in_one_pass() -> None:
    model = tiny.model("gpt2")
    alone = measured(model, TOKENS).scores()
    layers: list[int] = []
    with observing(model, lambda layer, *_: layers.append(layer)):
        together = measured(model, TOKENS).scores()
    assert layers == [0, 1, 2]
    # Attention runs eagerly while it is observed.
    assert_close(together, {name: one.numpy() for name, one in alone.items()}, 1e-5)


def test_nothing_is_left_on_the_model() -> None:
    model = tiny.model("olmo2")
    prove_outputs(model, "m")
    measured(model, TOKENS)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("architecture", EVERY)
def test_in_16_bits_the_proof_holds_and_scores_stay_near(architecture: str) -> None:
    model = tiny.model(architecture).bfloat16()
    prove_outputs(model, "m")
    # The same weights, exactly computed; where experts are chosen, rounding may choose others.
    if not any(word in architecture for word in ("moe", "mixtral", "gpt_oss", "next", "deepseek")):
        found = measured(model, TOKENS).scores()["output_norm"].numpy()
        expected = explicit(model.float(), TOKENS)["output_norm"]
        assert np.nanmax(np.abs(found - expected)) < 0.1 * np.nanmax(expected)


def test_sums_of_16_bit_models_are_those_of_float32() -> None:
    model = tiny.model("gpt2").bfloat16()
    reader = OutputReader(model)
    z: dict[int, Tensor] = {}
    with (
        torch.inference_mode(),
        reader.watching(lambda layer, written: z.update({layer: written.z})),
    ):
        model.base_model(TOKENS, use_cache=False)
    found = measured(model, TOKENS).scores()["output_norm"]
    for layer in range(3):
        weight = array(model.get_parameter(f"transformer.h.{layer}.attn.c_proj.weight"))
        outputs_ = np.einsum("bthd,hdm->bthm", array(z[layer]), weight.reshape(6, 8, 48))
        expected = np.linalg.norm(outputs_, axis=-1).mean(axis=(0, 1))
        assert found[layer].numpy() == pytest.approx(expected, rel=1e-6)


def test_of_a_layer_only_numbers_per_token_and_head_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.model("gemma2")
    own, alive = OutputSums._add, WeakSet[HeadOutputs]()

    def add(self: OutputSums, seen: Any, one: HeadOutputs) -> None:
        assert not alive  # what an earlier layer has written is gone
        alive.add(one)
        own(self, seen, one)

    monkeypatch.setattr(OutputSums, "_add", add)
    sums = OutputSums(OutputReader(model))
    with torch.inference_mode(), sums.watching():
        sums.begin(TOKENS)
        model.base_model(TOKENS, use_cache=False)
        for layer in sums._layers.values():
            kept = [part for parts in layer.unscaled.values() for part in parts]
            assert {part.shape for part in kept} == {(3, 13, 6)}
            assert sum(part.untyped_storage().nbytes() for part in kept) == 2 * 4 * 3 * 13 * 6
        sums.end()
    assert not sums._layers


# What is undefined.


def of_logits(scores: dict[str, Tensor]) -> list[Tensor]:
    return [scores[name] for name in scores if name.startswith("direct_logit")]


def test_layers_without_softmax_heads_have_no_scores() -> None:
    scores = measured(tiny.model("qwen3_next"), TOKENS).scores()
    for values in scores.values():
        assert values[0].isnan().all()
        assert values[1:].isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ],
)
def test_without_a_plain_residual_stream_no_logits_are_attributed(
    architecture: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.CONFIGS[architecture]
    monkeypatch.setitem(tiny.CONFIGS, architecture, config | options)
    model = tiny.model(architecture)
    prove_outputs(model, "m")
    sums = measured(model, TOKENS)
    assert sums.undefined == dict.fromkeys(
        ("direct_logit_attribution", "direct_logit_attribution_centered"),
        "the residual stream itself is normed in every layer",
    )
    scores = sums.scores()
    assert all(values.isnan().all() for values in of_logits(scores))
    assert scores["output_norm"].isfinite().all()
    assert scores["residual_share"].isfinite().all()
    if architecture == "bloom":
        # Were it not told apart, the proof would find it.
        monkeypatch.setattr(OutputReader, "no_attribution", None)
        with pytest.raises(ModelError, match="does not stand in the final residual stream"):
            prove_outputs(model, "m")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"_remove_final_layer_norm": True}, "there is no norm before the unembedding"),
        ({"word_embed_proj_dim": 24}, "is projected before the unembedding"),
    ],
)
def test_opt_of_unusual_ends_has_no_attribution(
    options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.CONFIGS, "opt", tiny.CONFIGS["opt"] | options)
    model = tiny.model("opt")
    prove_outputs(model, "m")
    sums = measured(model, TOKENS)
    assert reason in sums.undefined["direct_logit_attribution"]
    assert sums.scores()["residual_share"].isfinite().all()


def test_an_update_of_zero_has_no_shares() -> None:
    model = tiny.model("llama")
    nn.init.zeros_(model.model.layers[1].self_attn.o_proj.weight)
    model.model.layers[1].self_attn.o_proj.bias = None
    sums = measured(model, TOKENS)
    scores = sums.scores()
    assert scores["residual_share"][1].isnan().all()
    assert scores["residual_share"][[0, 2]].isfinite().all()
    assert (scores["output_norm"][1] == 0).all()
    assert all((values[1] == 0).all() for values in of_logits(scores))
    assert sums.undefined == {"L1": "its attention adds nothing: no shares"}


def test_sequences_of_one_token_have_no_next_token() -> None:
    sums = measured(tiny.model("llama"), TOKENS[:, :1])
    scores = sums.scores()
    assert all(values.isnan().all() for values in of_logits(scores))
    assert scores["residual_share"].isfinite().all()
    assert set(sums.undefined.values()) == {"no sequence has a second token"}
    assert set(sums.undefined) == {
        "direct_logit_attribution",
        "direct_logit_attribution_centered",
    }


def test_positions_where_nothing_is_added_do_not_count() -> None:
    z = torch.zeros(1, 3, 2, 1)
    z[0, 1] = torch.tensor([[1.0], [3.0]])
    values = OUTPUT_METRICS["residual_share"].compute(heads(z, torch.eye(2)[:, None]))
    assert values[0, 1].tolist() == pytest.approx([0.1, 0.9])
    assert values[0, [0, 2]].isnan().all()


def test_a_damaged_head_spoils_only_what_is_compared_with_it() -> None:
    model = tiny.model("gpt2")
    with torch.no_grad():
        first = 2 * 48  # the first column after queries and keys
        weight = model.get_parameter("transformer.h.2.attn.c_attn.weight")
        weight[0, first + 8] = torch.nan  # of head 1
    prove_outputs(model, "m")
    sums, whole = measured(model, TOKENS), measured(tiny.model("gpt2"), TOKENS)
    scores, expected = sums.scores(), whole.scores()
    norms = scores["output_norm"]
    assert norms[2].isnan().tolist() == [False, True, False, False, False, False]
    kept = ~norms.isnan()
    assert norms[kept].numpy() == pytest.approx(expected["output_norm"][kept].numpy())
    assert scores["residual_share"][2].isnan().all()
    assert scores["residual_share"][:2].isfinite().all()
    assert all(values.isnan().all() for values in of_logits(scores))
    assert set(sums.undefined) == {
        "L2",
        "L2H1",
        "direct_logit_attribution",
        "direct_logit_attribution_centered",
    }


# What is refused.


def test_outputs_that_are_not_what_is_added_are_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out * 1.01)
    with pytest.raises(
        ModelError, match=r"heads of m \(llama\) write cannot be read: in layer 1 their sum is off"
    ):
        prove_outputs(model, "m")


def test_heads_in_another_order_of_columns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("mistral")
    own = OutputReader.matrices
    monkeypatch.setattr(OutputReader, "matrices", lambda self, layer: own(self, layer).flip(0))
    with pytest.raises(ModelError, match="their sum is off what the attention adds"):
        prove_outputs(model, "m")


def test_layers_that_do_not_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    monkeypatch.setattr(model.model.layers[1], "forward", lambda hidden, **_: hidden)
    with pytest.raises(ModelError, match=r"\[0, 1, 2\] were expected in order, seen were \[0, 2\]"):
        prove_outputs(model, "m")


def test_logits_that_are_made_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("granite")
    monkeypatch.setattr(OutputReader, "logit_multiplier", 1.0)
    with pytest.raises(ModelError, match="the final norm with its scale given moves logits by 3"):
        prove_outputs(model, "m")  # logits are divided by 4: off by 4 - 1


def test_a_wrong_multiplier_of_updates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("granite")
    monkeypatch.setattr(OutputReader, "residual_multiplier", 1.0)
    with pytest.raises(ModelError, match="layer 0 adds does not stand in the final residual"):
        prove_outputs(model, "m")


def test_a_block_that_adds_twice_is_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[2].self_attn.register_forward_hook(lambda _m, _a, out: (2 * out[0], out[1]))
    with pytest.raises(ModelError, match="layer 2 adds does not stand in the final residual"):
        prove_outputs(model, "m")


# Parts that can be derived on paper.


def heads(z: Tensor, output: Tensor, **more: Any) -> HeadOutputs:
    added = torch.einsum("bthd,hdm->btm", z, output)
    gram = (output @ output.mT).double()
    return HeadOutputs(z=z, output=output, gram=gram, **({"added": added} | more))


def test_one_head_on_paper() -> None:
    # z = 2 and W_O = (3, 4): o = (6, 8), of length 10; the layer adds (6, 16).
    z, output = torch.full((1, 1, 1, 1), 2.0), torch.tensor([[[3.0, 4.0]]])
    more = {"added": torch.tensor([[[6.0, 16.0]]])}
    more |= {"targets": torch.tensor([[9.0, 9.0], [1.0, 0.5]]), "mean_target": torch.ones(2)}
    one = heads(z, output, following=torch.tensor([[1]]), **more)
    found = {name: float(metric.compute(one)) for name, metric in OUTPUT_METRICS.items()}
    assert found == pytest.approx(
        {
            "output_norm": 10.0,
            "residual_share": (36 + 128) / (36 + 256),
            "direct_logit_attribution": 6 + 4,
            "direct_logit_attribution_centered": 10 - 14,
        }
    )


def test_without_targets_no_logit_is_attributed() -> None:
    one = heads(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 2))
    for name in ("direct_logit_attribution", "direct_logit_attribution_centered"):
        with pytest.raises(ValueError, match="without targets"):
            OUTPUT_METRICS[name].compute(one)
    with pytest.raises(ValueError, match="without targets"):
        _ = one.of_next_token


@pytest.mark.parametrize("d_model", [6, 7])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_is_read_from_what_it_does(kind: type[nn.Module], d_model: int) -> None:
    norm = kind(d_model, eps=1e-5)
    weight = torch.linspace(-1, 2, d_model)
    with torch.no_grad():
        norm.weight.copy_(weight)  # type: ignore[operator] # an nn.Module's attribute
        bias = torch.zeros(d_model)
        if kind is nn.LayerNorm:
            bias = torch.linspace(3, 5, d_model)
            norm.bias.copy_(bias)  # type: ignore[operator] # an nn.Module's attribute
    found = FrozenNorm.of(norm, d_model, "cpu")
    assert found.is_centring == (kind is nn.LayerNorm)
    assert found.gain.numpy() == pytest.approx(weight.numpy(), abs=1e-5)
    assert found.bias.numpy() == pytest.approx(bias.numpy(), abs=1e-5)
    x = torch.arange(1.0, d_model + 1)
    own = x - x.mean() if found.is_centring else x
    scale = float(found.scale(x, norm(x).detach()))
    assert scale == pytest.approx(1 / math.sqrt(float((own**2).mean()) + 1e-5), rel=1e-5)
    d = torch.linspace(1, -1, d_model)
    assert float(found.pulled_back(d) @ x) == pytest.approx(float(d @ found.unscaled(x)), rel=1e-5)


# A real model.


@pytest.mark.model
def test_a_real_models_scores(smollm2: Path) -> None:
    prepared = loading.prepare(resolve(str(smollm2)))
    model = loading.load(prepared, device="cpu", dtype="float32").model
    prove_outputs(model, "SmolLM2")
    text = "The capital of France is Paris, and the capital of Italy is Rome."
    assert prepared.tokenizer is not None
    tokens = torch.tensor([prepared.tokenizer(text)["input_ids"]])
    assert_close(measured(model, tokens).scores(), explicit(model, tokens), 1e-4)
