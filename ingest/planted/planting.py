"""From a design to a model: matrices in terms of the residual stream's parts, then rotated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import silu
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from ingest.planted import truth
from ingest.planted.design import (
    LADDER,
    MLP_ONE,
    MLP_TOKEN,
    NORM_EPSILON,
    SPECIAL,
    STAGES,
    Design,
    Role,
    design,
)
from ingest.planted.truth import Expected, Facts

_LINEAR_FROM = 6.0
"""Where GELU is the identity to within 1e-8 of its argument: MLPs work from there."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model, where its planted heads are, and what detectors must find of them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    heads: Mapping[Role, tuple[int, int]]
    """Layer and head of each role; all other heads are like `Role.UNIFORM`."""
    design: Design

    def expected(self, metric: str, role: Role, facts: Facts | None = None) -> Expected:
        """A metric's value on a planted head, see `ingest.planted.truth.expected`."""
        return truth.expected(self.design, self.heads, metric, role, facts)

    def save(self, folder: Path) -> Path:
        """A checkpoint that transformers, and `heads ingest`, read as any other."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


def plant(architecture: str, *, seed: int = 0, **sizes: int) -> Planted:
    """Make a model, in float32 and evaluation mode, with one head of every role.

    Args:
        architecture: One of `ARCHITECTURES`.
        seed: Of the residual stream's rotation, and of the order of heads within layers.
        **sizes: As of `ingest.planted.design.design`.

    Raises:
        ValueError: If the architecture is unknown or a size too small.
    """
    plan = design(architecture, **sizes)
    generator = torch.Generator().manual_seed(seed)
    roles = _placed(plan, generator)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            _config(plan), dtype=torch.float32, trust_remote_code=False
        ).eval()
    rotation = _rotation(plan, generator)
    layers = [
        _disguised(plan, _layer(plan, layer, row), generator) for layer, row in enumerate(roles)
    ]
    _fill(model, plan, layers, rotation)
    return Planted(
        model=model,
        tokenizer=_tokenizer(plan, plan.words),
        heads={
            role: (layer, head)
            for layer, row in enumerate(roles)
            for head, role in enumerate(row)
            if role is not None
        },
        design=plan,
    )


# --- in terms of parts ---


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Which rows of a matrix stand for which part of the residual stream."""

    token: slice
    one: int
    position: slice
    previous: slice
    output: slice
    ladder: int
    n: int

    @classmethod
    def of(cls, plan: Design) -> "_Parts":
        v, turning = plan.vocabulary, 2 * len(plan.clock_dims) if plan.learned else 0
        blocks = [slice(start, start + v) for start in (0, v, 2 * v)]
        end = 3 * v + turning
        return cls(
            token=blocks[0],
            previous=blocks[1],
            output=blocks[2],
            position=slice(3 * v, end),
            one=end,
            ladder=end + 1,
            n=end + 2,
        )


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """As `ingest.heads.LayerHeads`, with parts for the residual stream, and apart from it."""

    query: Float[Tensor, "head part d_head"]
    key: Float[Tensor, "kv_head part d_head"]
    value: Float[Tensor, "kv_head part d_head"]
    output: Float[Tensor, "head d_head part"]
    query_bias: Float[Tensor, "head d_head"]
    key_bias: Float[Tensor, "kv_head d_head"]


def _placed(plan: Design, generator: torch.Generator) -> list[list[Role | None]]:
    """Every layer's roles by head, in random order."""
    rows = []
    for layer in range(plan.n_layers):
        last = layer == plan.n_layers - 1
        stage: tuple[Role | None, ...] = STAGES[2] if last else STAGES[layer] if layer < 2 else ()  # noqa: PLR2004 - the first and the second
        row = [*stage, *[None] * (plan.n_heads - len(stage))]
        rows.append([row[i] for i in torch.randperm(plan.n_heads, generator=generator).tolist()])
    return rows


def _layer(plan: Design, layer: int, roles: list[Role | None]) -> _Layer:
    parts = _Parts.of(plan)
    read = plan.read(layer)
    key, key_constant = _key(plan, parts, read, is_second=layer == 1)
    queries = [_query(plan, parts, read, role) for role in roles]
    biases = [constant for _, constant in queries]
    matrices = [matrix for matrix, _ in queries]
    if not plan.layout.biased:
        key[parts.one] += read["one"] * key_constant
        for matrix, constant in queries:
            matrix[parts.one] += read["one"] * constant
        key_constant, biases = 0 * key_constant, [0 * one for one in biases]
    value = key.new_zeros(parts.n, plan.d_head)
    value[parts.token, plan.content_dims[:-1]] = read["token"] * _identity(plan)
    value[parts.one, plan.content_dims[-1]] = read["one"]
    return _Layer(
        query=torch.stack(matrices),
        key=key.expand(plan.n_kv_heads, -1, -1),
        value=value.expand(plan.n_kv_heads, -1, -1),
        output=torch.stack([_output(plan, parts, role) for role in roles]),
        query_bias=torch.stack(biases),
        key_bias=key_constant.expand(plan.n_kv_heads, -1),
    )


def _disguised(plan: Design, one: _Layer, generator: torch.Generator) -> _Layer:
    """Give every KV head a basis of its own, which neither scores nor outputs show.

    Of keys, signs; the same for both dimensions of a pair that turns, since only that commutes with
    turning. Of values, signs and order.
    """
    shape, group = (plan.n_kv_heads, plan.d_head), plan.n_heads // plan.n_kv_heads
    drawn = torch.randint(2, (2, *shape), generator=generator).double() * 2 - 1
    signs, flips = drawn[0], drawn[1]
    half = round(plan.d_head * plan.layout.rotary_share) // 2
    signs[:, half : 2 * half] = signs[:, :half]
    order = torch.rand(shape, generator=generator).argsort(dim=1)
    columns = order[:, None].expand_as(one.value)
    rows = order.repeat_interleave(group, dim=0)[:, :, None].expand_as(one.output)
    of_query, of_output = (each.repeat_interleave(group, dim=0) for each in (signs, flips))
    return _Layer(
        query=one.query * of_query[:, None],
        key=one.key * signs[:, None],
        value=one.value.gather(2, columns) * flips[:, None],
        output=one.output.gather(1, rows) * of_output[:, :, None],
        query_bias=one.query_bias * of_query,
        key_bias=one.key_bias * signs,
    )


def _identity(plan: Design) -> Tensor:
    return torch.eye(plan.vocabulary, dtype=torch.float64)


def _query(
    plan: Design, parts: _Parts, read: Mapping[str, float], role: Role | None
) -> tuple[Float[Tensor, "part d_head"], Float[Tensor, " d_head"]]:
    matrix = torch.zeros(parts.n, plan.d_head, dtype=torch.float64)
    constant = torch.zeros(plan.d_head, dtype=torch.float64)
    # What the model divides scores by.
    unit = math.sqrt(plan.d_head)
    if role is Role.CLASS:
        constant[[plan.content_dims[token] for token in plan.token_class]] = unit * plan.sharpness
    told = None if role is None else plan.kernel(role)
    if role is None or told is None:
        return matrix, constant
    matrix[parts.token, plan.content_dims[:-1]] = (
        unit * plan.match(role) * read["token"] * _identity(plan)
    )
    b, kernel = told
    turns = unit * b * kernel.weights
    cosine, sine = turns * kernel.phases.cos(), turns * kernel.phases.sin()
    into_cosine, into_sine = (list(dims) for dims in zip(*plan.clock_dims, strict=True))
    if not plan.learned:
        constant[into_cosine], constant[into_sine] = cosine, -sine
        return matrix, constant
    n = len(plan.clock_dims)
    scale = read["position"] * math.sqrt(n)
    turned = torch.zeros(2 * n, plan.d_head, dtype=torch.float64)
    turned[range(n), into_cosine] = turned[range(n, 2 * n), into_sine] = scale * cosine
    turned[range(n, 2 * n), into_cosine] = scale * sine
    turned[range(n), into_sine] = -scale * sine
    matrix[parts.position] = turned
    return matrix, constant


def _key(
    plan: Design, parts: _Parts, read: Mapping[str, float], *, is_second: bool
) -> tuple[Float[Tensor, "part d_head"], Float[Tensor, " d_head"]]:
    matrix = torch.zeros(parts.n, plan.d_head, dtype=torch.float64)
    constant = torch.zeros(plan.d_head, dtype=torch.float64)
    sign = -1 if is_second else 1
    matrix[parts.token, plan.content_dims[:-1]] = sign * read["token"] * _identity(plan)
    if is_second:
        matrix[parts.previous, plan.content_dims[:-1]] = read["previous"] * _identity(plan)
    cosine, sine = (list(dims) for dims in zip(*plan.clock_dims, strict=True))
    if plan.learned:
        n = len(plan.clock_dims)
        rows = range(parts.position.start, parts.position.stop)
        matrix[rows, cosine + sine] = read["position"] * math.sqrt(n)
    else:
        constant[cosine] = 1
    return matrix, constant


def _output(plan: Design, parts: _Parts, role: Role | None) -> Float[Tensor, "d_head part"]:
    matrix = torch.zeros(plan.d_head, parts.n, dtype=torch.float64)
    matrix[plan.content_dims[-1], parts.ladder] = LADDER
    if role is Role.PREVIOUS:
        matrix[plan.content_dims[:-1], parts.previous] = _identity(plan)
    sign = -1.0 if role is Role.SUPPRESSOR else 1.0
    for source, target in truth.mapping(plan, role).items():
        matrix[plan.content_dims[source], parts.output.start + target] = sign
    return matrix


# --- in terms of a checkpoint ---


def _rotation(plan: Design, generator: torch.Generator) -> Float[Tensor, "part d_model"]:
    """Random orthonormal directions, orthogonal to the vector of ones where norms remove that."""
    n = _Parts.of(plan).n
    drawn = torch.randn(plan.d_model, n + 1, dtype=torch.float64, generator=generator)
    if plan.layout.centred:
        drawn[:, 0] = 1
    return torch.linalg.qr(drawn).Q[:, 1:].T


def _config(plan: Design) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": plan.vocabulary,
        "pad_token_id": SPECIAL.index("<pad>"),
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "tie_word_embeddings": False,
        "architectures": None,
    }
    sizes = {
        "hidden_size": plan.d_model,
        "intermediate_size": plan.vocabulary + 1,
        "num_hidden_layers": plan.n_layers,
        "num_attention_heads": plan.n_heads,
        "max_position_embeddings": plan.context,
    }
    rope = {"rope_type": "default", "rope_theta": plan.layout.theta}
    own: dict[str, Any]
    if plan.architecture == "gpt2":
        own = {
            "n_embd": plan.d_model,
            "n_inner": plan.vocabulary + 1,
            "n_layer": plan.n_layers,
            "n_head": plan.n_heads,
            "n_positions": plan.context,
            "layer_norm_epsilon": NORM_EPSILON,
        }
    elif plan.architecture == "gpt_neox":
        share = {"partial_rotary_factor": plan.layout.rotary_share}
        own = sizes | {"layer_norm_eps": NORM_EPSILON, "rope_parameters": rope | share}
    else:
        own = sizes | {
            "num_key_value_heads": plan.n_kv_heads,
            "head_dim": plan.d_head,
            "rms_norm_eps": NORM_EPSILON,
            "rope_parameters": rope,
        }
    return AutoConfig.for_model(plan.architecture, **common | own)


def _embeddings(
    plan: Design, rotation: Float[Tensor, "part d_model"]
) -> tuple[Float[Tensor, "vocab d_model"], Float[Tensor, "vocab d_model"]]:
    parts = _Parts.of(plan)
    embedded = torch.zeros(plan.vocabulary, parts.n, dtype=torch.float64)
    unembedded = torch.zeros_like(embedded)
    embedded[:, parts.token] = unembedded[:, parts.output] = _identity(plan)
    embedded[:, parts.one] = 1
    ladder = [plan.ladder(token) for token in range(plan.vocabulary)]
    unembedded[:, parts.ladder] = torch.tensor(ladder, dtype=torch.float64)
    return embedded @ rotation, unembedded @ rotation


def _parameters(
    plan: Design, planted: Sequence[_Layer], rotation: Float[Tensor, "part d_model"]
) -> dict[str, Tensor]:
    """What is neither zero nor a norm's, embeddings apart, by the names that transformers has."""
    parts = _Parts.of(plan)
    layers, attention = (_NAMES[plan.architecture][name] for name in ("layers", "attention"))
    found = _first_mlp(plan, parts, rotation, f"{layers}.0.mlp")
    if plan.learned:
        angle = torch.arange(plan.context).double()[:, None] * plan.clock.frequencies
        pairs = torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(angle.shape[1])
        found["transformer.wpe.weight"] = pairs @ rotation[parts.position]
    for number, one in enumerate(planted):
        heads = {part: rotation.T @ getattr(one, part) for part in ("query", "key", "value")}
        heads |= {"output": one.output @ rotation}
        biases = {"query": one.query_bias, "key": one.key_bias}
        for name, tensor in _attention(plan, heads, biases).items():
            found[f"{layers}.{number}.{attention}.{name}"] = tensor
    return found


_LLAMA = {"layers": "model.layers", "attention": "self_attn"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"layers": "transformer.h", "attention": "attn"},
    "gpt_neox": {"layers": "gpt_neox.layers", "attention": "attention"},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
}


def _attention(
    plan: Design, heads: Mapping[str, Tensor], biases: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One layer's heads, [head, d_model, d_head] each, as the layout stores them.

    Written without the readers' own map of rows, so that either can be wrong and be found out.
    """
    rows = {part: heads[part].mT for part in ("query", "key", "value")}
    output = heads["output"].flatten(0, 1)
    no_bias = torch.zeros_like(biases["key"])
    if plan.architecture == "gpt2":
        stacked = torch.cat([one.flatten(0, 1) for one in rows.values()])
        bias = torch.cat([biases["query"], biases["key"], no_bias]).flatten()
        return {
            "c_attn.weight": stacked.T,
            "c_attn.bias": bias,
            "c_proj.weight": output,
        }
    if plan.architecture == "gpt_neox":
        by_head = torch.stack(list(rows.values()), dim=1).flatten(0, 2)
        bias = torch.stack([biases["query"], biases["key"], no_bias], dim=1).flatten()
        return {
            "query_key_value.weight": by_head,
            "query_key_value.bias": bias,
            "dense.weight": output.T,
        }
    own = {f"{part[0]}_proj.weight": one.flatten(0, 1) for part, one in rows.items()}
    if plan.layout.biased:
        own |= {f"{part[0]}_proj.bias": one.flatten() for part, one in biases.items()}
    return own | {"o_proj.weight": output.T}


def _first_mlp(
    plan: Design, parts: _Parts, rotation: Float[Tensor, "part d_model"], prefix: str
) -> dict[str, Tensor]:
    """An MLP that is linear: it adds `MLP_TOKEN` of a token's code, `MLP_ONE` of `one`.

    GELU is the identity from `_LINEAR_FROM` on. A gated unit is linear where its gate is constant,
    here silu(1), read from `one`.
    """
    # With parallel residuals, the MLP reads what attention reads.
    after = {"previous": 1.0, "ladder": plan.n_heads * LADDER}
    lengths = plan.residual(0) | ({} if plan.architecture == "gpt_neox" else after)
    factor = plan.factor(lengths)
    chosen = torch.cat([rotation[parts.token], rotation[parts.one][None]])
    gains = torch.tensor([MLP_TOKEN] * plan.vocabulary + [MLP_ONE], dtype=torch.float64)
    into, back = chosen / factor, chosen.T * gains
    if plan.layout.decoupled:
        gate = (rotation[parts.one] / factor).expand(len(chosen), -1)
        opened = silu(torch.ones((), dtype=torch.float64))
        names = {"gate_proj": gate, "up_proj": into, "down_proj": back / opened}
        return {f"{prefix}.{name}.weight": one for name, one in names.items()}
    shift = torch.full((len(chosen),), _LINEAR_FROM, dtype=torch.float64)
    if plan.architecture == "gpt2":
        into_name, back_name, into, back_weight = "c_fc", "c_proj", into.T, back.T
    else:
        into_name, back_name, back_weight = "dense_h_to_4h", "dense_4h_to_h", back
    return {
        f"{prefix}.{into_name}.weight": into,
        f"{prefix}.{into_name}.bias": shift,
        f"{prefix}.{back_name}.weight": back_weight,
        f"{prefix}.{back_name}.bias": -back @ shift,
    }


def _fill(
    model: PreTrainedModel, plan: Design, planted: Sequence[_Layer], rotation: Tensor
) -> None:
    """Set parameters: norms to the identity, and to zero what the design does not speak of."""
    state = model.state_dict()
    for name, tensor in state.items():
        is_norm = "norm" in name or ".ln_" in name
        tensor.fill_(float(is_norm and name.endswith("weight")))
    for name, tensor in _parameters(plan, planted, rotation).items():
        if state[name].shape != tensor.shape:
            raise TypeError(f"{name}: {tuple(tensor.shape)}, not {tuple(state[name].shape)}")
        state[name].copy_(tensor)
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    for module, tensor in zip(modules, _embeddings(plan, rotation), strict=True):
        module.weight.data.copy_(tensor)


def _tokenizer(plan: Design, words: Sequence[str]) -> PreTrainedTokenizerBase:
    """One token a word, with or without a space before it."""
    vocabulary = {word: number for number, word in enumerate(words)}
    special = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    special["unk_token"] = special["pad_token"]
    if plan.architecture == "qwen2":
        # transformers loads no other tokenizer for this architecture. It has no merges here, and
        # leaves spaces out, since there is no token for them.
        return Qwen2Tokenizer(vocab=vocabulary, merges=[], **special)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
