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

CONFIGS: dict[str, dict[str, Any]] = {
    "cohere": _EVEN,
    "gemma": _GROUPED,
    "gemma2": _GROUPED
    | {"sliding_window": 12, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0},
    "gemma3_text": _GROUPED | {"sliding_window": 12, "query_pre_attn_scalar": 20},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 6,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": _ALL_HEADS,
    "granite": _EVEN | {"attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "llama": _GROUPED | {"attention_bias": True},
    "mistral": _GROUPED | {"sliding_window": 12},
    "olmo": _EVEN,
    "phi": _EVEN,
    "phi3": _EVEN | {"original_max_position_embeddings": 256},
    "qwen2": _EVEN,
    "qwen3": _GROUPED,
    "smollm3": _EVEN,
    "stablelm": _EVEN,
    "starcoder2": _EVEN | {"sliding_window": 12},
}
VARIANTS = {"stablelm parallel": {"use_parallel_residual": True}}
"""Forms of an architecture that change where its MLP reads, by architecture and a word."""


def model(architecture: str, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model whose weights are large enough for attention to be far from uniform."""
    name = architecture.split(maxsplit=1)[0]
    options = CONFIGS[name] | VARIANTS.get(architecture, {})
    config = AutoConfig.for_model(name, **options)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
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
