"""Where each supported architecture keeps its heads.

An architecture stands here once tests/test_readers.py proves its layout: that a head's output
computed from these matrices equals what the running model's own module gives.
"""

from dataclasses import dataclass
from typing import Literal

from catalog.errors import ModelError

Fusion = Literal["separate", "gpt2", "neox", "phi3"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of modules inside one decoder layer.

    `fusion` says how the value matrix is stored: in a module of its own; GPT-2: one transposed
    matrix [d_model, (q | k | v)]; GPT-NeoX: one matrix [(head, q | k | v), d_model]; Phi-3: one
    matrix [(q | k | v), d_model] with grouped keys and values.
    """

    attention: str = "self_attn"
    fusion: Fusion = "separate"
    value: str = "v_proj"
    output: str = "o_proj"
    mlp: str = "mlp"
    mlp_norm: str = "post_attention_layernorm"


_LLAMA = Layout()
_PARALLEL = Layout(mlp_norm="input_layernorm")

LAYOUTS: dict[str, Layout] = {
    "cohere": _PARALLEL,
    "gemma": _LLAMA,
    "gemma2": Layout(mlp_norm="pre_feedforward_layernorm"),
    "gemma3_text": Layout(mlp_norm="pre_feedforward_layernorm"),
    "gpt2": Layout(
        attention="attn", fusion="gpt2", value="c_attn", output="c_proj", mlp_norm="ln_2"
    ),
    "gpt_neox": Layout(
        attention="attention", fusion="neox", value="query_key_value", output="dense"
    ),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo": _LLAMA,
    "phi": Layout(output="dense", mlp_norm="input_layernorm"),
    "phi3": Layout(fusion="phi3", value="qkv_proj"),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
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
