"""Relation scores by screening against the paper's dense products: `make bench-weights`.

Both are timed layer by layer in turn, in one process, on the same matrices; hits are compared.
About half an hour on two cores, nearly all of it the reference's. CPU seconds are what to compare
where a machine is shared.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from benchmarks import _checkpoint
from benchmarks._dense import dense_hits
from benchmarks._machine import Usage, measured, product_rate
from ingest.heads import LayerHeads
from ingest.probes import relations
from ingest.probes.relations import MIN_USABLE
from ingest.probes.sequences import Vocabulary
from ingest.ranks import Pairs, Unembedding, target_ranks
from ingest.readers import loading

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "maps_relations"
DEPTH = 25
RELATIONS, PAIRS_EACH = 16, 129
"""For random weights: as many pairs as SmolLM2 can use of the published relations."""
GPT2_XL = GPT2Config(n_embd=1_600, n_layer=48, n_head=25)
LLAMA_70B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=8_192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
READ_OF_70B = ("v_proj", "o_proj", "layers.0.mlp", "layers.0.post", "embed_tokens", "lm_head")
MEASURED_OF_70B = 3

console = Console(highlight=False, soft_wrap=True)


@dataclass(kw_only=True)
class Race:
    """Both methods, summed over layers."""

    name: str
    dense: Usage = field(default_factory=Usage)
    ours: Usage = field(default_factory=Usage)
    dense_flops: int = 0
    our_flops: int = 0
    bytes_read: int | None = None
    scores: int = 0
    differing: int = 0

    def layer(
        self,
        sources: Tensor,
        heads: LayerHeads,
        unembedding: Unembedding,
        pairs: Sequence[tuple[Pairs, int]],
    ) -> None:
        values, outputs = heads.part("value"), heads.part("output")
        together = Pairs(
            source=torch.cat([one.source for one, _ in pairs]),
            target=torch.cat([one.target for one, _ in pairs]),
        )
        with measured() as ours:
            ranks = target_ranks(sources, values, outputs, unembedding, together, depth=DEPTH)
        with measured() as dense:
            hits = dense_hits(sources, values, outputs, unembedding.weight, pairs)
        with FlopCounterMode(display=False) as counted:
            target_ranks(sources, values, outputs, unembedding, together, depth=DEPTH)
        self.our_flops += counted.get_total_flops()
        _add(self.ours, ours)
        _add(self.dense, dense)
        self.dense_flops += hits.flops
        ends = [0, *accumulate(len(one.source) for one, _ in pairs)]
        for found, expected in ((ranks.plain, hits.plain), (ranks.negated, hits.negated)):
            for number, ((start, end), (_, k)) in enumerate(
                zip(pairwise(ends), pairs, strict=True)
            ):
                own = (found[:, start:end] < k).sum(dim=1)
                self.scores += len(own)
                self.differing += int((own != expected[number]).sum())

    def report(self, rate: float) -> None:
        dense_rate, our_rate = (
            flops / usage.seconds / 1e9
            for flops, usage in ((self.dense_flops, self.dense), (self.our_flops, self.ours))
        )
        console.print(
            f"{self.name}: dense {self.dense.seconds:.1f} s ({self.dense.cpu_seconds:.0f} CPU-s, "
            f"{dense_rate:.0f} of {rate:.0f} GFLOP/s, peak {self.dense.peak_megabytes:.0f} MB); "
            f"screening {self.ours.seconds:.2f} s ({self.ours.cpu_seconds:.1f} CPU-s, "
            f"{our_rate:.0f} GFLOP/s, peak {self.ours.peak_megabytes:.0f} MB)"
        )
        console.print(
            f"  ratio {self.dense.seconds / self.ours.seconds:.1f} in time, "
            f"{self.dense.cpu_seconds / self.ours.cpu_seconds:.1f} in CPU time; "
            f"{self.differing} of {self.scores:,} scores differ; "
            f"{self.dense_flops / 1e12:.2f} and {self.our_flops / 1e12:.2f} TFLOP"
            + ("" if self.bytes_read is None else f"; {self.bytes_read / 1e6:.0f} MB read")
        )


def main() -> None:
    """Run all of it; or the part that is named: smollm2, shapes or large."""
    chosen = sys.argv[1:] or ["smollm2", "shapes", "large"]
    rate = product_rate()
    console.print(f"matrix products: {rate:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        if "smollm2" in chosen:
            _smollm2(rate)
        if "shapes" in chosen:
            _shape("GPT-2-xl's shape, 2 of 48 layers", GPT2_XL, 2, rate)
            _shape("Llama-3.1-8B's shape, 1 of 32 layers", _checkpoint.LLAMA_8B, 1, rate)
    if "large" in chosen:
        _large()


def _smollm2(rate: float) -> None:
    prepared = _checkpoint.smollm2()
    vocabulary = Vocabulary.of(prepared.config, prepared.tokenizer)
    found = (
        relations.from_folder(PUBLISHED)
        if PUBLISHED.is_dir()
        else relations.shipped("llama", vocabulary.size)
    )
    usable = [relations.usable(one, vocabulary.encode) for one in found.relations]
    usable = [one for one in usable if len(one.sources) >= MIN_USABLE]
    rows: dict[int, int] = {}
    pairs = [
        (
            Pairs(
                source=torch.tensor([rows.setdefault(t, len(rows)) for t in one.sources]),
                target=torch.tensor(one.targets),
            ),
            one.relation.k,
        )
        for one in usable
    ]
    reader = loading.reader(prepared, device="cpu")
    embedded = reader.embedding(torch.tensor(list(rows)))
    after_mlp = reader.first_mlp(embedded)
    unembedding = Unembedding(reader.unembedding().float())
    n_pairs = sum(len(one.source) for one, _ in pairs)
    race = Race(name=f"SmolLM2, {len(pairs)} relations ({found.name}), {n_pairs:,} pairs")
    for layer in _told(range(reader.n_layers)):
        sources = after_mlp if layer else embedded
        race.layer(sources, reader.heads(layer, ("value", "output")), unembedding, pairs)
    race.bytes_read = reader.bytes_read
    race.report(rate)


def _shape(name: str, config: PreTrainedConfig, n_layers: int, rate: float) -> None:
    """Random weights, sources and targets: nothing is easier for being rare."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.02 * torch.randn(shape, generator=generator)

    n_heads, d_model = config.num_attention_heads, config.hidden_size
    n_kv_heads = getattr(config, "num_key_value_heads", n_heads)
    d_head, vocabulary = d_model // n_heads, config.vocab_size
    sources = normal(RELATIONS * PAIRS_EACH, d_model)
    pairs = [
        (
            Pairs(
                source=part, target=torch.randint(vocabulary, (PAIRS_EACH,), generator=generator)
            ),
            10,
        )
        for part in torch.arange(len(sources)).split(PAIRS_EACH)
    ]
    unembedding = Unembedding(normal(vocabulary, d_model))
    race = Race(name=name)
    for _ in _told(range(n_layers)):
        heads = LayerHeads(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            value=normal(n_kv_heads, d_model, d_head),
            output=normal(n_heads, d_head, d_model),
        )
        race.layer(sources, heads, unembedding, pairs)
    race.report(rate)


def _large() -> None:
    """The 70B shape from its 80 shards, in a process of its own."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "llama-70b"
        console.print("writing shards of Llama-3.1-70B's shape (17 GB, the rest holes)")
        _checkpoint.write(
            folder, LLAMA_70B, is_real=lambda name: any(part in name for part in READ_OF_70B)
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.large_model", folder, str(MEASURED_OF_70B), "cpu"],
            check=True,
            capture_output=True,
            text=True,
        )
    facts = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    layers = facts["layers"]
    console.print(
        f"Llama-3.1-70B's shape, {layers} layers of 64 heads: peak resident {peak / 1e9:.1f} GB "
        f"(kernel), {facts['bytes_read'] / 1e9:.1f} GB read of "
        f"{2 * 70.55:.0f}; {facts['prepare_seconds']:.0f} s to prepare, "
        f"{facts['layer_seconds']:.1f} s a layer over {MEASURED_OF_70B} layers; projected "
        f"{(facts['prepare_seconds'] + layers * facts['layer_seconds']) / 60:.0f} minutes for all"
    )


def _add(total: Usage, one: Usage) -> None:
    total.seconds += one.seconds
    total.cpu_seconds += one.cpu_seconds
    total.peak_megabytes = max(total.peak_megabytes, one.peak_megabytes)


def _told(layers: range) -> Iterable[int]:
    for layer in layers:
        print(f"layer {layer + 1} of {len(layers)}", file=sys.stderr, flush=True)
        yield layer


if __name__ == "__main__":
    main()
