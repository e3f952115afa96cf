"""Checkpoints of a given shape with random weights, on disk as large models lie there."""

import json
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from ingest.readers.tensors import skeleton

_DIFFERENT = 3
"""Layers with weights of their own; later ones repeat them, which no measure here can tell."""


def write(folder: Path, config: PreTrainedConfig, *, is_real: Callable[[str], bool]) -> None:
    """Write bfloat16 safetensors, a shard for each layer, with their index and config.json.

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
