"""Relations of a model of Llama-3.1-70B's shape, from its shards on disk; run by `weights`.

A process of its own, so that the kernel's peak of its resident memory is the measure's alone.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoConfig

from ingest.ranks import Pairs, Unembedding, target_ranks
from ingest.readers.tensors import SafetensorsTensors, skeleton
from ingest.readers.weights import HeadReader

PAIRS, SOURCES = 2_065, 1_500
"""As many as SmolLM2 can use of the published relations, of about as many distinct sources."""
DEPTH = 25


def main(folder: Path, n_measured: int, device: str) -> None:
    """Rank `n_measured` layers, read what the others need too, and print the measures as JSON."""
    begun = time.perf_counter()
    config = AutoConfig.from_pretrained(folder)
    model = skeleton(config)
    tensors = SafetensorsTensors(folder, folder.name, model)
    reader = HeadReader(tensors, model, folder.name, device=device)
    reader.verify(first_mlp=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randperm(config.vocab_size, generator=generator)[:SOURCES]
    pairs = Pairs(
        source=torch.randint(SOURCES, (PAIRS,), generator=generator).to(device),
        target=torch.randint(config.vocab_size, (PAIRS,), generator=generator).to(device),
    )
    sources = reader.first_mlp(reader.embedding(tokens))
    screening = torch.float32 if device == "cpu" else torch.bfloat16
    unembedding = Unembedding(reader.unembedding(), screening=screening)
    prepared = time.perf_counter()
    print("prepared", file=sys.stderr, flush=True)
    for layer in range(n_measured):
        heads = reader.heads(layer, ("value", "output"))
        ranks = target_ranks(
            sources, heads.part("value"), heads.part("output"), unembedding, pairs, depth=DEPTH
        )
        assert int(ranks.plain.max()) == DEPTH  # noqa: S101 - and the work is really done
        print(f"layer {layer}", file=sys.stderr, flush=True)
    measured = time.perf_counter()
    for layer in range(n_measured, reader.n_layers):
        reader.heads(layer, ("value", "output"))
    read = time.perf_counter()
    print(
        json.dumps(
            {
                "layers": reader.n_layers,
                "prepare_seconds": prepared - begun,
                "layer_seconds": (measured - prepared) / n_measured,
                "read_seconds": read - measured,
                "bytes_read": reader.bytes_read,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
