"""Tiny seeded models of every supported architecture, and a tokenizer for them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 211
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
# Head sizes that are not hidden_size / n_heads where the architecture allows it.
_GROUPED = _SIZES | {"hidden_size": 48, "head_dim": 10}
_EVEN = _SIZES | {"hidden_size": 48}
_ALL_HEADS = _EVEN | {"num_key_value_heads": 6}

_EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_LINEAR_THEN_SOFTMAX = {
    "head_dim": 10,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}

CONFIGS: dict[str, dict[str, Any]] = {
    "arcee": _GROUPED,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 3, "n_head": 6},
    "codegen": _GPT | {"n_head": 8, "rotary_dim": 4},
    "cohere": _EVEN,
    "cohere2": _GROUPED | {"sliding_window": 12},
    "deepseek_v3": _ALL_HEADS
    | {
        "q_lora_rank": 16,
        "kv_lora_rank": 12,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
    }
    | _EXPERTS,
    "falcon": _EVEN | {"new_decoder_architecture": True, "num_kv_heads": 3},
    "gemma": _GROUPED,
    "gemma2": _GROUPED
    | {"sliding_window": 12, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0},
    "gemma3_text": _GROUPED | {"sliding_window": 12, "query_pre_attn_scalar": 20},
    "gpt2": _GPT | {"tie_word_embeddings": True},
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 6,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 12,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    "gpt_neox": _ALL_HEADS,
    "gpt_oss": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _EVEN | {"attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "granitemoe": _EVEN | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": _GROUPED | {"attention_bias": True},
    "mistral": _GROUPED | {"sliding_window": 12},
    "mixtral": _GROUPED | {"num_local_experts": 4},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 3, "n_heads": 6},
    "nemotron": _GROUPED,
    "olmo": _EVEN,
    "olmo2": _EVEN,
    "olmo3": _EVEN | {"sliding_window": 12},
    "opt": _ALL_HEADS | {"ffn_dim": 56, "word_embed_proj_dim": 48},
    "phi": _EVEN,
    "phi3": _EVEN | {"original_max_position_embeddings": 256},
    "qwen2": _EVEN,
    "qwen2_moe": _EVEN | {"shared_expert_intermediate_size": 24} | _EXPERTS,
    "qwen3": _GROUPED,
    "qwen3_5_text": _EVEN | _LINEAR_THEN_SOFTMAX,
    "qwen3_moe": _GROUPED | _EXPERTS,
    "qwen3_next": _EVEN | _LINEAR_THEN_SOFTMAX | _EXPERTS | {"shared_expert_intermediate_size": 24},
    "seed_oss": _GROUPED,
    "smollm3": _EVEN,
    "stablelm": _EVEN,
    "starcoder2": _EVEN | {"sliding_window": 12},
    "xglm": {
        "vocab_size": VOCABULARY,
        "d_model": 48,
        "num_layers": 3,
        "attention_heads": 6,
        "ffn_dim": 56,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "falcon multi-query": {"new_decoder_architecture": False, "multi_query": True},
    "falcon multi-head": {
        "new_decoder_architecture": False,
        "multi_query": False,
        "parallel_attn": False,
        "num_kv_heads": 6,
        "bias": True,
    },
    "gpt_bigcode multi-head": {"multi_query": False},
    "llama tied": {"tie_word_embeddings": True},
    "deepseek_v3 plain-query": {"q_lora_rank": None},
    "stablelm parallel": {"use_parallel_residual": True},
}
"""Forms of an architecture that keep their heads or MLPs elsewhere: architecture and a word."""


def model(architecture: str, *, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A float32 model whose weights are large enough for attention to be far from uniform."""
    name = architecture.split(maxsplit=1)[0]
    config = AutoConfig.for_model(name, **CONFIGS[name] | VARIANTS.get(architecture, {}))
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def tokenizer(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Words w3 ... w210, each one token with the space before it."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"w{i}": i for i in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(
            single="<s> $A", pair=None, special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<pad>",
    )


def save(folder: Path, architecture: str, *, seed: int = 0, adds_bos: bool = False) -> Path:
    """A checkpoint folder of a tiny model."""
    model(architecture, seed=seed).save_pretrained(folder)
    tokenizer(adds_bos=adds_bos).save_pretrained(folder)
    return folder


def relations(folder: Path) -> Path:
    """A relation set whose words the tiny tokenizer knows."""
    import json

    folder.mkdir()
    successor = [[f"w{i}", f"w{i + 1}"] for i in range(3, 120)]
    copying = [[f"w{i}", f"w{i}"] for i in range(3, 100)]
    few = [[f"w{i}", "unknown word"] for i in range(3, 100)] + successor[:7]
    (folder / "successor.json").write_text(json.dumps(successor))
    (folder / "copy.json").write_text(
        json.dumps({"pairs": copying, "k": 1, "category": "Algorithmic"})
    )
    (folder / "few.json").write_text(json.dumps(few))
    return folder
