"""Observed attention: what is refused, what a sink takes, damaged heads, and little memory."""

import itertools
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from asking import Notes, on_probe, write
from observed import whole
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import catalog
from catalog.errors import InputError, ModelError
from ingest.metrics import OUTPUT_METRICS
from ingest.probes.sequences import Encoded
from ingest.progress import Silence
from ingest.readers import attention
from ingest.readers.attention import attention_modules, observing, prove
from ingest.readers.loading import LoadedModel
from ingest.request import IngestRequest
from ingest.rows import Rows
from ingest.run import ingest
from ingest.suites import _passes, patterns
from ingest.suites._passes import measure

TOKENS = torch.arange(3, 3 + 2 * 30).reshape(2, 30)
N_LAYERS = 3


def seen(model: PreTrainedModel) -> dict[int, Tensor]:
    return whole(model, TOKENS).patterns


def returning(
    model: PreTrainedModel, layer: int, change: Callable[[Tensor], Tensor | None]
) -> None:
    """Let an attention module hand out other patterns than it has used.

    They are also what is observed where the model is not asked through transformers' interface.
    """

    def hook(_module: object, _args: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
        if output[1] is None:  # not eager
            return output
        return (output[0], change(output[1]), *output[2:])

    attention_modules(model)[layer].register_forward_hook(hook)


# What is refused.


def test_an_observer_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    own = model.base_model.forward

    def flipped(*args: object, **kwargs: object) -> object:
        out = own(*args, **kwargs)
        if out.attentions is not None:
            out.attentions = tuple(a.flip(-1) for a in out.attentions)
        return out

    monkeypatch.setattr(model.base_model, "forward", flipped)
    with pytest.raises(
        ModelError, match=r"of m \(llama\) cannot be observed: layer 0 differs from the model's own"
    ):
        prove(model, "m")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p / 2, r"layer 1 has rows that sum to 0\.5000 to 0\.5000"),
        (lambda p: p.flip(-2), "layer 1 attends to what its mask hides"),
        (lambda p: p.transpose(0, 1), r"layer 1 has patterns of shape \(6, 1, 10, 10\), not"),
    ],
)
def test_patterns_that_cannot_be_are_refused(
    change: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = tiny.model("bloom")
    n_seen = itertools.count(1)

    def changed(p: Tensor) -> Tensor:
        # The third time it is observed.
        return p if next(n_seen) < 3 and "shape" in reason else change(p)

    returning(model, 1, changed)
    with pytest.raises(ModelError, match=reason):
        prove(model, "m")


def test_a_window_that_is_not_kept_is_refused() -> None:
    model = tiny.model("gpt_neo")
    local = attention_modules(model)[1]
    returning(model, 1, lambda p: torch.ones_like(p).tril() / torch.arange(1, 25)[:, None])
    assert isinstance(local.bias, Tensor)
    with pytest.raises(ModelError, match="layer 1 attends to what its mask hides"):
        prove(model, "m")


def test_layers_that_are_not_seen_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    modules = attention_modules(model)
    monkeypatch.setattr(attention, "attention_modules", lambda _: {0: modules[0], 2: modules[2]})
    with pytest.raises(ModelError, match="hands out 3 patterns of 2 layers"):
        prove(model, "m")
    monkeypatch.setattr(
        attention, "attention_modules", lambda _: {0: modules[0], 2: modules[1], 1: modules[2]}
    )
    prove(model, "m")  # the order in which layers run, whatever they are called
    monkeypatch.setattr(
        attention, "attention_modules", lambda _: {1: modules[1], 0: modules[0], 2: modules[2]}
    )
    with pytest.raises(ModelError, match=r"\[1, 0, 2\] were expected in order, seen were \[0, 1"):
        prove(model, "m")


def test_a_model_that_computes_otherwise_when_it_is_observed_is_refused() -> None:
    model = tiny.model("llama")

    def hook(_module: object, _args: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
        return output if output[1] is None else (1.01 * output[0], *output[1:])

    attention_modules(model)[2].register_forward_hook(hook)
    with pytest.raises(ModelError, match="its output moves by"):
        prove(model, "m")


def test_a_module_that_gives_no_patterns_is_refused() -> None:
    model = tiny.model("gptj")
    returning(model, 2, lambda _: None)
    with pytest.raises(ModelError, match="attention of layer 2 gives no patterns"):
        seen(model)


@pytest.mark.parametrize(
    "given", [{"attention_mask": torch.zeros(2, 1, 30, 30)}, {"position_bias": torch.zeros(1)}]
)
def test_a_mask_or_bias_that_is_not_eager_attentions_is_refused(given: dict[str, Tensor]) -> None:
    model = tiny.model("llama")

    def hook(
        _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | given

    attention_modules(model)[1].register_forward_pre_hook(hook, with_kwargs=True)
    with pytest.raises(ModelError, match="attention of layer 1 has a mask of its own"):
        seen(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neo"])
def test_one_observer_at_a_time(architecture: str) -> None:
    model = tiny.model(architecture)
    before = model.config._attn_implementation
    with (
        observing(model, lambda *_: None),
        pytest.raises(ModelError, match="being observed already"),
        observing(model, lambda *_: None),
    ):
        pass
    assert model.config._attn_implementation == before
    assert len(seen(model)) == N_LAYERS
    assert not any(module._forward_hooks for module in attention_modules(model).values())


# What is seen.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_falcon_with_alibi_is_refused(dtype: torch.dtype) -> None:
    """Its eager attention adds ALiBi twice (transformers 5.23): these are not its patterns."""
    facts = tiny.CONFIGS["falcon"] | tiny.VARIANTS["falcon multi-head"] | {"alibi": True}
    config = AutoConfig.for_model("falcon", **facts)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype=dtype)
    with pytest.raises(ModelError, match=r"falcon.* cannot be observed: eager .* its ALiBi twice"):
        prove(model, "m")
    model.config.alibi = None  # as if nobody had looked: what is left of the proof finds it
    if dtype == torch.float32:
        with pytest.raises(ModelError, match="its output moves by"):
            prove(model, "m")


def test_a_sinks_share_is_missing_from_its_rows() -> None:
    """Raising the sinks of the first layer by 1 multiplies the odds of the sink by e."""
    model = tiny.model("gpt_oss")
    before = seen(model)[0].double()
    sinks = attention_modules(model)[0].sinks
    assert isinstance(sinks, Tensor)
    with torch.no_grad():
        sinks.add_(1)
    after = seen(model)[0].double()
    odds = [(1 - p.sum(-1)) / p.sum(-1) for p in (before, after)]
    torch.testing.assert_close(odds[1], odds[0] * torch.e, rtol=1e-4, atol=1e-6)
    # What keys share among themselves stays.
    shares = [p / p.sum(-1, keepdim=True) for p in (before, after)]
    torch.testing.assert_close(shares[1], shares[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "falcon", "gpt_neo", "mpt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_16_bits_are_observed_in_float32(architecture: str, dtype: torch.dtype) -> None:
    model = tiny.model(architecture)
    cast("nn.Module", model).to(dtype)
    prove(model, "m")
    assert {patterns.dtype for patterns in seen(model).values()} == {torch.float32}


def test_the_proof_goes_beyond_the_window_where_it_can() -> None:
    def length(architecture: str, **facts: int) -> int:
        model = tiny.model(architecture)
        vars(model.config).update(facts)
        return attention._proof_tokens(model).shape[1]

    assert length("gemma2") == 24
    assert length("gemma2", sliding_window=100) == 108
    assert length("gpt_neo", window_size=100) == 108
    assert length("gemma2", sliding_window=252) == 256
    assert length("gemma2", sliding_window=5000, max_position_embeddings=9000) == 24
    assert length("gemma2", max_position_embeddings=10) == 10


def test_a_layers_patterns_are_freed_before_the_next_layers() -> None:
    for architecture in ("llama", "gemma2", "bloom", "gptj", "falcon"):
        model = tiny.model(architecture)
        alive: list[tuple[int, weakref.ref[Tensor]]] = []

        def observe(layer: int, rows: Rows, alive: Any = alive) -> None:
            assert not any(one() is not None for place, one in alive if place < layer), layer
            alive.append((layer, weakref.ref(rows.patterns)))

        with torch.inference_mode(), observing(model, observe, n_rows=7):
            model.base_model(TOKENS, use_cache=False)
        assert len(alive) == N_LAYERS * 5


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "gpt_oss", "gptj"])
def test_rows_are_the_same_however_many_a_block_has(architecture: str) -> None:
    model = tiny.model(architecture)
    at_once, one_by_one = whole(model, TOKENS), whole(model, TOKENS, n_rows=1)
    assert len(one_by_one.blocks[0]) == TOKENS.shape[1]
    for layer, expected in at_once.patterns.items():
        torch.testing.assert_close(one_by_one.patterns[layer], expected, rtol=0, atol=1e-5)
        assert torch.equal(one_by_one.allowed[layer], at_once.allowed[layer])


def test_keys_before_the_window_are_not_computed() -> None:
    """Of layers with a window of 12, blocks of 5 queries see 16 keys at most."""
    blocks = whole(tiny.model("mistral"), TOKENS, n_rows=5).blocks[1]
    assert [one.first_key for one in blocks] == [0, 0, 0, 4, 9, 14]
    assert max(one.patterns.shape[-1] for one in blocks) == 16
    own = tiny.model("mistral", attn_implementation="eager")(TOKENS, output_attentions=True)
    torch.testing.assert_close(
        whole(tiny.model("mistral"), TOKENS, n_rows=5).patterns[1], own.attentions[1]
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "bloom"])
def test_what_rows_know_of_themselves_is_so(architecture: str) -> None:
    """Entropies from logits or from patterns, distances, and what lies behind: by plain loops."""
    for blocks in whole(tiny.model(architecture), TOKENS, n_rows=7).blocks.values():
        for rows in blocks:
            p = rows.patterns.double()
            key = torch.arange(rows.first_key, rows.stop)
            query = torch.arange(rows.first, rows.stop)
            reach = query[:, None] - key
            free = p * (key > 0)
            close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5, check_dtype=False)
            close(rows.entropy, torch.special.entr(p).sum(-1))
            close(rows.distance, (p * reach).sum(-1))
            close(rows.distance_sink_free, (free * reach).sum(-1))
            close(rows.sink_free, free.sum(-1))
            close(rows.largest, p.max(dim=-1).values)
            for distance, since in ((0, 0), (0, 1), (1, 0), (13, 0), (13, 20), (29, 0), (40, 0)):
                expected = [
                    p[..., q - rows.first, q - distance - rows.first_key]
                    if q - distance >= rows.first_key
                    else p[..., 0, 0] * 0
                    for q in query.tolist()
                    if q >= max(distance, since)
                ]
                found = rows.behind(distance, since=since)
                assert found.shape[-1] == len(expected)
                if expected:
                    close(found, torch.stack(expected, dim=-1))


# What runs make of it.


def loaded(architecture: str = "llama") -> LoadedModel:
    return LoadedModel(name="m", model=tiny.model(architecture))


def random_tokens(*lengths: int) -> Encoded:
    """Sequences whose last token is their first again."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, tiny.VOCABULARY, (n - 1,), generator=generator) for n in lengths]
    tokens = [[*one.tolist(), int(one[0])] for one in drawn]
    return Encoded(tokens=tokens, bos=0, period=None)


class Memory:
    """Makes a model fail as if memory ran out, and counts how often."""

    def __init__(self, one: LoadedModel, error: Exception, *, layer: int, most: int) -> None:
        self.failed = 0
        self.sizes: list[int] = []

        def fail(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            size = len(args[0] if args else kwargs["hidden_states"])
            self.sizes.append(size)
            if size > most:
                self.failed += 1
                raise error

        module = attention_modules(one.model)[layer]
        module.register_forward_pre_hook(fail, with_kwargs=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("layer", [0, 2])
def test_batches_are_halved_when_memory_runs_out(error: Exception, layer: int) -> None:
    """Also where earlier layers have seen the whole batch already: nothing counts twice."""
    encoded = random_tokens(*[17] * 7, 20, 20, 30)
    at_once = measure(loaded(), encoded, "p", Silence()).scores()
    one, notes = loaded(), Notes()
    memory = Memory(one, error, layer=layer, most=2)
    sums = measure(one, encoded, "p", notes)
    halved = sums.scores()
    assert memory.failed == 2
    assert memory.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1, 2, 1]
    assert (notes.done, notes.total) == (10, 10)
    assert notes.noted == [
        f"out of memory: sequences of 17 tokens go through {half} at a time, which changes no "
        "score (p)"
        for half in (3, 1)
    ]
    assert sums.notes == [text.removesuffix(" (p)") for text in notes.noted]
    assert set(at_once) == set(halved)
    for name, scores in at_once.items():
        torch.testing.assert_close(halved[name], scores, rtol=0, atol=1e-6, equal_nan=True)
        assert not scores.isnan().any()


def test_memory_that_does_not_hold_one_sequence_is_an_error() -> None:
    one = loaded()
    Memory(one, MemoryError(), layer=1, most=0)
    with pytest.raises(ModelError, match="does not hold m on one sequence of 17 tokens"):
        measure(one, random_tokens(17, 17), "p", Silence())
    assert not any(module._forward_hooks for module in attention_modules(one.model).values())


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    one = loaded()
    Memory(one, RuntimeError("shapes differ"), layer=1, most=0)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure(one, random_tokens(17, 17), "p", Silence())


def test_positional_over_several_batches_and_where_its_sums_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = random_tokens(20, 20, 20, 20, 20, 9)
    at_once = measure(loaded(), encoded, "p", Silence())
    monkeypatch.setattr(_passes, "_batch_size", lambda *_: 2)
    split = measure(loaded(), encoded, "p", Silence())
    expected = at_once.scores()["positional"]
    assert ((expected > 0) & (expected < 1)).all()
    torch.testing.assert_close(split.scores()["positional"], expected, rtol=0, atol=1e-6)
    monkeypatch.setattr(_passes, "_MAX_KEPT_BYTES", 1000)
    without = measure(loaded(), encoded, "p", Silence())
    assert without.scores()["positional"].isnan().all()
    assert not without.scores()["entropy"].isnan().any()
    assert patterns._undefined({"p": without, "q": without}) == {
        "positional": "the mean over sequences of 20 tokens would take 0.0 GiB on p, q"
    }


def test_positional_is_undefined_without_two_sequences_of_one_length() -> None:
    sums = measure(loaded(), random_tokens(9, 10, 11), "p", Silence())
    assert sums.scores()["positional"].isnan().all()
    assert sums.left_out["positional"] == "no two sequences have the same length"


def rows(one: catalog.Catalog) -> list[dict[str, Any]]:
    order = "ORDER BY metric, probe, layer, head"
    return one.sql(f"SELECT metric, probe, layer, head, value FROM scores {order}").rows()


def places_undefined(run: dict[str, Any]) -> dict[str, str]:
    """The heads and layers without scores that a run tells of, and why."""
    undefined: dict[str, str] = json.loads(run["notes"])["undefined"]
    return {place: why for place, why in undefined.items() if place.startswith("L")}


def test_a_head_with_nan_in_its_attention_has_no_score_and_the_others_have(
    duckdb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head 2 of layer 1, on one probe only; and all heads of layer 2 on another model."""
    folder = tiny.save(tmp_path / "m", "gptj")
    probe = write(
        tmp_path / "mine.jsonl", *({"tokens": one} for one in random_tokens(12, 12, 15).tokens)
    )
    asked = on_probe(folder, probe)
    undamaged = catalog.connect(f"duckdb:///{tmp_path / 'undamaged.duckdb'}", create=True)
    ingest(undamaged, asked)

    def poisoned(heads: slice, layer: int) -> Callable[..., LoadedModel]:
        def load(*args: Any, **kwargs: Any) -> LoadedModel:
            one = own(*args, **kwargs)

            def damage(patterns: Tensor) -> Tensor:
                patterns = patterns.clone()
                patterns[:, heads, -1, 0] = torch.nan
                return patterns

            returning(one.model, layer, damage)
            return one

        return load

    from ingest.readers import loading

    own = loading.load
    monkeypatch.setattr(loading, "load", poisoned(slice(2, 3), 1))
    one = catalog.connect(duckdb_url, create=True)
    notes = Notes()
    ingest(one, asked, notes)
    reason = "NaN in its attention on mine"
    assert f"L1H2 has no score: {reason}" in notes.noted
    assert rows(one) == [
        # What this head writes is as it was: only what it hands out as patterns is damaged.
        row | {"value": None}
        if (row["layer"], row["head"]) == (1, 2) and row["metric"] not in OUTPUT_METRICS
        else row
        for row in rows(undamaged)
    ]
    (run,) = one.sql("SELECT status, notes FROM runs").rows()
    assert run["status"] == "succeeded"
    assert places_undefined(run) == {"L1H2": reason}

    monkeypatch.setattr(loading, "load", poisoned(slice(None), 2))
    other = catalog.connect(f"duckdb:///{tmp_path / 'layer.duckdb'}", create=True)
    ingest(other, asked)
    (run,) = other.sql("SELECT notes FROM runs").rows()
    assert places_undefined(run) == {"L2": reason}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_head_whose_queries_are_nan_is_damaged_alone(architecture: str) -> None:
    """In the last layer, where nothing is left that it could spoil."""
    one = loaded(architecture)
    projection = {"llama": "q_proj", "gpt2": "c_attn"}[architecture]
    d_head = {"llama": 10, "gpt2": 8}[architecture]

    def damage(_module: object, _args: object, output: Tensor) -> Tensor:
        output[1, 4, 3 * d_head] = torch.nan
        return output

    last = attention_modules(one.model)[2]
    last.get_submodule(projection).register_forward_hook(damage)
    sums = measure(one, random_tokens(9, 9), "p", Silence(), with_outputs=False)
    assert sums.damaged.nonzero().tolist() == [[2, 3]]
    for scores in sums.scores().values():
        assert scores.isnan().nonzero().tolist() == [[2, 3]]


def test_layers_without_softmax_heads_have_no_scores_and_say_so(
    duckdb_url: str, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "hybrid", "qwen3_next")
    probe = write(
        tmp_path / "mine.jsonl", *({"tokens": one} for one in random_tokens(12, 12, 15).tokens)
    )
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, on_probe(folder, probe))
    # No token of the probe is in some classes.
    found = [row for row in rows(one) if not row["metric"].startswith("token_lift")]
    assert {row["layer"] for row in found if row["value"] is None} == {0}
    assert {row["layer"] for row in found if row["value"] is not None} == {1, 2}
    (run,) = one.sql("SELECT notes FROM runs").rows()
    assert places_undefined(run) == {"L0": "this layer has no softmax attention"}


def test_a_model_whose_proof_fails_is_refused_by_name(
    duckdb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tmp_path / "strange", "bloom")
    monkeypatch.setattr(attention, "_sums", lambda *_, **__: "has rows that sum to 2")
    one = catalog.connect(duckdb_url, create=True)
    with pytest.raises(
        ModelError, match=r"of strange \(bloom\) cannot be observed: layer 0 has rows"
    ):
        ingest(one, IngestRequest(model=str(folder), suites=("patterns",)))
    (run,) = one.sql("SELECT status FROM runs").rows()
    assert run["status"] == "failed"


@pytest.mark.parametrize("text", ["", "w3", "   "])
def test_a_text_without_two_tokens_is_refused(duckdb_url: str, tmp_path: Path, text: str) -> None:
    folder = tiny.save(tmp_path / "m", "llama")
    probe = write(tmp_path / "mine.jsonl", {"text": "w3 w4"}, "", {"text": text})
    one = catalog.connect(duckdb_url, create=True)
    count = len(text.split())
    with pytest.raises(InputError, match=rf"line 3: has {count} tokens; a pattern needs at least"):
        ingest(one, on_probe(folder, probe))
    assert len(one.sql("SELECT * FROM runs")) == 0


def test_tokens_that_never_repeat_and_a_class_that_none_meets_are_null_with_the_reason(
    duckdb_url: str, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "m", "llama")
    classes = {"none": [0, 0, 0, 0], "some": [0, 1, 0, 0]}
    lines = [{"tokens": [3 + i, 9, 4 + i, 50], "classes": classes} for i in range(2)]
    probe = write(tmp_path / "mine.jsonl", *lines)
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, on_probe(folder, probe))
    values: dict[str, set[float | None]] = {}
    for row in rows(one):
        values.setdefault(row["metric"], set()).add(row["value"])
    undefined = json.loads(one.sql("SELECT notes FROM runs").rows()[0]["notes"])["undefined"]
    reasons = {
        **dict.fromkeys(
            ("same_token_mass", "induction_mass"), "no token occurs twice in a sequence on mine"
        ),
        "token_lift[none]": "no token is of this class on mine",
        "local_8": "the sequences have no position that counts on mine",
    }
    assert {name: undefined[name] for name in reasons} == reasons
    # The shipped classes are of strings, and the tiny tokenizer has none of them.
    assert undefined.keys() == {name for name, found in values.items() if None in found}
    assert all(values[name] == {None} for name in undefined)
    assert values["token_mass[none]"] == {0}
    assert min(cast("set[float]", values["token_lift[some]"])) > 0


@pytest.mark.parametrize(("architecture", "context"), [("llama", 256), ("mpt", 2048)])
def test_a_sequence_longer_than_the_context_is_refused(
    duckdb_url: str, tmp_path: Path, architecture: str, context: int
) -> None:
    folder = tiny.save(tmp_path / "m", architecture)
    probe = write(tmp_path / "mine.jsonl", {"tokens": [3] * (context + 1)})
    one = catalog.connect(duckdb_url, create=True)
    with pytest.raises(InputError, match=f"{context + 1} tokens; the model's context is {context}"):
        ingest(one, on_probe(folder, probe))
