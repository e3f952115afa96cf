"""Where each supported architecture keeps its heads.

An architecture stands here once tests/test_readers.py proves its layout: that a head's output and
its attention scores, computed from these matrices, equal what the running model's own module gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig

from catalog.errors import ModelError

Rows = Mapping[str, Int[Tensor, "head d_head"]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many heads of which size a model's layers have."""

    n_heads: int
    n_kv_heads: int
    d_head: int


RowOrder = Callable[[PreTrainedConfig, Sizes], Rows]


def _stacked(_config: PreTrainedConfig, sizes: Sizes) -> Rows:
    """All queries, then all keys, then all values."""
    counts = {"query": sizes.n_heads, "key": sizes.n_kv_heads, "value": sizes.n_kv_heads}
    rows = torch.arange(sum(counts.values()) * sizes.d_head).reshape(-1, sizes.d_head)
    return dict(zip(counts, rows.split(list(counts.values())), strict=True))


def _per_head(_config: PreTrainedConfig, sizes: Sizes) -> Rows:
    """Head by head its query, key and value."""
    rows = torch.arange(3 * sizes.n_heads * sizes.d_head).reshape(sizes.n_heads, 3, -1)
    return {"query": rows[:, 0], "key": rows[:, 1], "value": rows[:, 2]}


def _per_group(sizes: Sizes) -> Rows:
    """KV head by KV head its queries, its key and its value."""
    group = sizes.n_heads // sizes.n_kv_heads
    shape = (sizes.n_kv_heads, group + 2, sizes.d_head)
    rows = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    return {
        "query": rows[:, :-2].reshape(sizes.n_heads, -1),
        "key": rows[:, -2],
        "value": rows[:, -1],
    }


def _falcon(config: PreTrainedConfig, sizes: Sizes) -> Rows:
    if config.new_decoder_architecture:
        return _per_group(sizes)
    return (_stacked if config.multi_query else _per_head)(config, sizes)


def _gpt_bigcode(config: PreTrainedConfig, sizes: Sizes) -> Rows:
    return (_stacked if config.multi_query else _per_head)(config, sizes)


def _codegen(_config: PreTrainedConfig, sizes: Sizes) -> Rows:
    """Four blocks, each with the queries, then the values, then the keys of a quarter of heads."""
    rows = torch.arange(3 * sizes.n_heads * sizes.d_head).reshape(4, 3, -1)
    query, value, key = (rows[:, i].reshape(sizes.n_heads, -1) for i in range(3))
    return {"query": query, "key": key, "value": value}


def _gated(_config: PreTrainedConfig, sizes: Sizes) -> Rows:
    """Head by head its query, then its output gate, which is no part of any circuit here."""
    rows = torch.arange(2 * sizes.n_heads * sizes.d_head).reshape(sizes.n_heads, 2, -1)
    return {"query": rows[:, 0], "gate": rows[:, 1]}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of modules, `layers` in the model and the others inside one decoder layer.

    `rows` says which rows of a projection belong to which head, for the parts that are not simply
    in order of head; such parts may share one matrix.
    """

    layers: str = "model.layers"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    rows: RowOrder | None = None
    transposed: bool = False
    """Whether matrices are stored [input, output], as GPT-2's Conv1D does."""
    attention_norm: tuple[str, ...] = ("input_layernorm",)
    """The first of these that a layer has; none where the residual stream is read as it is."""
    mlp: tuple[str, ...] = ("mlp",)
    """Modules that are run one after the other."""
    mlp_norm: tuple[str, ...] = ("post_attention_layernorm", "input_layernorm")
    """As `attention_norm`. Where attention and MLP are parallel, a layer may have one norm."""
    positions: str | None = None
    """Learned position embeddings."""
    first_position: int = 0
    """The row of `positions` that stands for position 0."""
    unit_scaling: bool = False
    """Whether attention scores are not divided by the root of d_head."""
    latent: bool = False
    """Multi-head latent attention: keys and values through a normalised latent."""
    attention_post_norm: str | None = None
    """Through which the attention's output goes before it is added to the residual stream."""
    final_norm: str = "model.norm"
    """In the model: between the residual stream and the unembedding."""
    residual_multiplier: str | None = None
    """What the configuration calls the number by which a layer multiplies what it adds."""
    logit_multiplier: str | None = None
    """What it calls the number by which logits are multiplied."""
    logit_divisor: str | None = None
    """Or divided."""

    def projection(self, part: str) -> str:
        names: dict[str, str] = {
            "query": self.query,
            "gate": self.query,
            "key": self.key,
            "value": self.value,
            "output": self.output,
        }
        return names[part]


def _fused(name: str, rows: RowOrder, **names: str) -> dict[str, object]:
    return {"query": name, "key": name, "value": name, "rows": rows, **names}


def _layout(base: Mapping[str, object], **options: object) -> Layout:
    return Layout(**{**base, **options})  # type: ignore[arg-type]


_GPT = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attention": "attn",
    "output": "out_proj",
    "attention_norm": ("ln_1",),
    "mlp_norm": ("ln_2", "ln_1"),
}
_BLOOM = _fused(
    "query_key_value",
    _per_head,
    layers="transformer.h",
    attention="self_attention",
    output="dense",
    final_norm="transformer.ln_f",
)
_OPT = {
    "output": "out_proj",
    "attention_norm": ("self_attn_layer_norm",),
    "mlp": ("fc1", "activation_fn", "fc2"),
    "mlp_norm": ("final_layer_norm",),
}

_LLAMA = Layout()
_COHERE = Layout(logit_multiplier="logit_scale")
_GEMMA = Layout(
    mlp_norm=("pre_feedforward_layernorm",), attention_post_norm="post_attention_layernorm"
)
_GRANITE = {"residual_multiplier": "residual_multiplier", "logit_divisor": "logits_scaling"}
_POST_NORM = Layout(attention_norm=(), mlp_norm=(), attention_post_norm="post_attention_layernorm")
_GATED = Layout(rows=_gated)

LAYOUTS: dict[str, Layout] = {
    "arcee": _LLAMA,
    "bloom": _layout(_BLOOM),
    "codegen": _layout(_GPT, **_fused("qkv_proj", _codegen)),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "deepseek_v3": Layout(latent=True),
    "falcon": _layout(
        _BLOOM,
        rows=_falcon,
        attention_norm=("ln_attn", "input_layernorm"),
        mlp_norm=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
    ),
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _layout(
        _GPT,
        **_fused("c_attn", _stacked, output="c_proj"),
        transposed=True,
        positions="transformer.wpe",
    ),
    "gpt_bigcode": _layout(
        _GPT, **_fused("c_attn", _gpt_bigcode, output="c_proj"), positions="transformer.wpe"
    ),
    "gpt_neo": _layout(
        _GPT,
        attention="attn.attention",
        positions="transformer.wpe",
        unit_scaling=True,
    ),
    "gpt_neox": _layout(
        _BLOOM,
        layers="gpt_neox.layers",
        attention="attention",
        final_norm="gpt_neox.final_layer_norm",
    ),
    "gpt_oss": _LLAMA,
    "gptj": _layout(_GPT),
    "granite": _layout(_GRANITE),
    "granitemoe": _layout(_GRANITE, mlp=("block_sparse_moe",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "mpt": _layout(
        _GPT,
        **_fused("Wqkv", _stacked),
        layers="transformer.blocks",
        attention_norm=("norm_1",),
        mlp=("ffn",),
        mlp_norm=("norm_2",),
        final_norm="transformer.norm_f",
    ),
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "opt": _layout(
        _OPT,
        layers="model.decoder.layers",
        positions="model.decoder.embed_positions",
        first_position=2,
        final_norm="model.decoder.final_layer_norm",
    ),
    "phi": Layout(output="dense", final_norm="model.final_layernorm"),
    "phi3": _layout(_fused("qkv_proj", _stacked)),
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_5_text": _GATED,
    "qwen3_moe": _LLAMA,
    "qwen3_next": _GATED,
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "xglm": _layout(_OPT, final_norm="model.layer_norm"),
}


SUPPORTED = ", ".join(sorted(LAYOUTS))


def layout(architecture: str, model: str) -> Layout:
    """The layout of a supported architecture.

    Raises:
        ModelError: If it is not supported; names those that are.
    """
    if architecture not in LAYOUTS:
        raise ModelError(
            f"{model} is of architecture {architecture!r}, which is not supported; "
            f"supported are the decoders {SUPPORTED}"
        )
    return LAYOUTS[architecture]


def sizes(config: PreTrainedConfig) -> Sizes:
    """How many heads of which size; what configurations say in many words, said in one."""
    n_heads: int = config.num_attention_heads
    d_head: int = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_kv_heads: int = getattr(config, "num_key_value_heads", None) or n_heads
    if config.model_type == "falcon":
        grouped = config.num_kv_heads if config.new_decoder_architecture else n_heads
        n_kv_heads = 1 if config.multi_query and not config.new_decoder_architecture else grouped
    if config.model_type == "gpt_bigcode":
        n_kv_heads = 1 if config.multi_query else n_heads
    if config.model_type == "opt":
        n_kv_heads = n_heads
    if hasattr(config, "v_head_dim"):
        d_head = config.v_head_dim
    return Sizes(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head)
