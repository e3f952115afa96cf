"""Attention metrics from blocks of rows, against whole patterns that are reduced afterwards.

All ways run one model on the same tokens, repeated random ones, and give the same scores; each in a
process of its own, so that nobody's peak of memory is another's. The model is SmolLM2 in float32 on
the processor; where there is a GPU, then also one of Llama-3.1-8B's shape with random weights in
bfloat16. The references: transformers with
eager attention and `output_attentions=True`, reduced layer by layer, on as many sequences at a time
as `_PATTERN_BYTES` hold of their patterns; and TransformerLens, `run_with_cache` and its head
detector, which takes one prompt at a time. Ours measures every metric, the references only those
that are compared.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks._checkpoint import LLAMA_8B, smollm2
from benchmarks._machine import measured
from ingest.probes.sequences import Encoded
from ingest.progress import Silence
from ingest.readers import loading
from ingest.readers.loading import LoadedModel
from ingest.suites._passes import measure

SHAPES = {"cpu": ((32, 256), (4, 2048)), "cuda": ((32, 256), (4, 2048), (1, 32_768))}
"""Sequences, and tokens of each."""
MODELS = {"cpu": "SmolLM2, float32", "cuda": "Llama-3.1-8B's shape, bfloat16"}
DETECTED = ("previous_token", "duplicate_token", "induction")
"""What TransformerLens's detector knows."""
COMPARED = (*DETECTED, "current_token", "first_token", "entropy", "distance", "confidence")
REFERENCES = ("eager", "transformer_lens")
WAYS = (*REFERENCES, "blocks", "blocks and outputs")
_PATTERN_BYTES = 5e9

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run every way on every shape; or, with --way, one in this process, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--shape", type=int, nargs=2)
    parser.add_argument("--device", choices=MODELS, help="By default every one that is there.")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(_one(asked.way, *asked.shape, device=asked.device or "cpu")))
        return
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in [asked.device] if asked.device else there:
        for shape in [tuple(asked.shape)] if asked.shape else SHAPES[device]:
            console.print(f"{_where(device)}, {shape[0]} x {shape[1]:,} tokens")
            found = {way: _apart(way, shape, device) for way in WAYS}
            for way, facts in found.items():
                console.print(_told(way, facts, {name: found[name] for name in REFERENCES}))


def _where(device: str) -> str:
    at = f"{torch.get_num_threads()} threads"
    return f"{MODELS[device]}, {at if device == 'cpu' else torch.cuda.get_device_name()}"


def _apart(way: str, shape: tuple[int, int], device: str) -> dict[str, Any] | None:
    """What a process of its own measures; None where it was killed for want of memory."""
    command = [sys.executable, "-m", "benchmarks.attention", "--device", device, "--way", way]
    command += ["--shape", *map(str, shape)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        console.print(f"  {way}: ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        return None
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _told(
    way: str, facts: dict[str, Any] | None, references: dict[str, dict[str, Any] | None]
) -> str:
    if facts is None:
        return f"  {way}: did not finish"
    told = (
        f"  {way}: {facts['seconds']:.1f} s, {facts['cpu_seconds']:.1f} CPU-s, "
        f"{facts['megabytes']:,.0f} MB over the model"
    )
    for name, reference in references.items():
        if way in REFERENCES or reference is None:
            continue
        gap = max(
            abs(one - other) / max(1.0, abs(other))
            for metric, others in reference["scores"].items()
            for one, other in zip(facts["scores"][metric], others, strict=True)
        )
        told += (
            f"\n    against {name}: {reference['seconds'] / facts['seconds']:.2f} times faster, "
            f"{reference['cpu_seconds'] / facts['cpu_seconds']:.2f} in CPU time, "
            f"{reference['megabytes'] / facts['megabytes']:.1f} times less memory; "
            f"scores differ by {gap:.0e} at most"
        )
    return told


def _one(way: str, n_sequences: int, length: int, *, device: str) -> dict[str, Any]:
    prepared = smollm2()
    if device == "cpu":
        loaded = loading.load(prepared, device=device, dtype="float32")
    else:
        loaded = _of_8b_shape(device)
    generator = torch.Generator().manual_seed(0)
    period = length // 2
    once = [
        torch.randperm(loaded.config.vocab_size - 5, generator=generator)[:period] + 5
        for _ in range(n_sequences)
    ]
    tokens = torch.stack(once).repeat(1, 2).to(device)
    # Imported and set up outside of what is measured, like the model.
    detect = _detector(loaded, prepared.tokenizer) if way == "transformer_lens" else None
    with measured(device) as usage, torch.inference_mode():
        if way == "eager":
            scores = _eager(loaded, tokens, period)
        elif detect:
            scores = detect(tokens)
        else:
            encoded = Encoded(tokens=tokens.tolist(), bos=0, period=period)
            with_outputs = way == "blocks and outputs"
            sums = measure(loaded, encoded, "random", Silence(), with_outputs=with_outputs)
            scores = {name: sums.scores()[name] for name in COMPARED}
    return {
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "megabytes": usage.peak_megabytes - usage.base_megabytes,
        "scores": {name: values.flatten().tolist() for name, values in scores.items()},
    }


def _of_8b_shape(device: str) -> LoadedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LLAMA_8B, dtype=torch.bfloat16)
    return LoadedModel(name="random weights", model=model.eval())


def _eager(
    loaded: LoadedModel, tokens: Int[Tensor, "sequence token"], period: int
) -> dict[str, Float[Tensor, "layer head"]]:
    loaded.model.set_attn_implementation("eager")
    config, length = loaded.config, tokens.shape[1]
    n_bytes = loaded.model.dtype.itemsize
    of_one = config.num_hidden_layers * config.num_attention_heads * length**2 * n_bytes
    position = torch.arange(length, dtype=torch.float32, device=loaded.device)
    reach = (position[:, None] - position).clamp(min=0)[1:]
    total = {
        name: torch.zeros(config.num_hidden_layers, config.num_attention_heads, dtype=torch.float64)
        for name in COMPARED
    }
    for batch in tokens.split(max(1, int(_PATTERN_BYTES // of_one))):
        out = loaded.model.base_model(batch, use_cache=False, output_attentions=True)
        for layer, patterns in enumerate(map(Tensor.float, out.attentions)):
            later = patterns[..., 1:, :]
            values = {
                "previous_token": patterns.diagonal(offset=-1, dim1=-2, dim2=-1),
                "duplicate_token": patterns.diagonal(offset=-period, dim1=-2, dim2=-1),
                "induction": patterns.diagonal(offset=1 - period, dim1=-2, dim2=-1)[..., 1:],
                "current_token": patterns.diagonal(dim1=-2, dim2=-1)[..., 1:],
                "first_token": later[..., 0],
                "entropy": torch.special.entr(patterns).sum(dim=-1),
                "distance": torch.linalg.vecdot(later, reach),
                "confidence": later.amax(dim=-1),
            }
            for name, one in values.items():
                total[name][layer] += one.double().mean(dim=2).sum(dim=0).cpu() / len(tokens)
    return total


def _detector(
    loaded: LoadedModel, tokenizer: Any
) -> Callable[[Tensor], dict[str, Float[Tensor, "layer head"]]]:
    from transformer_lens.head_detector import detect_head  # noqa: PLC0415 - for this way alone
    from transformer_lens.model_bridge import TransformerBridge  # noqa: PLC0415

    bridge = TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        hf_model=loaded.model,
        tokenizer=tokenizer,
        device=str(loaded.device),
    )

    def detect(tokens: Int[Tensor, "sequence token"]) -> dict[str, Float[Tensor, "layer head"]]:
        length = tokens.shape[1]
        # The detector divides by all rows, and of the two stripes half the rows have a place.
        per_place = {"previous_token": length / (length - 1), "duplicate_token": 2, "induction": 2}
        found: dict[str, list[Tensor]] = {name: [] for name in DETECTED}
        for sequence in tokens:
            _, cache = bridge.run_with_cache(sequence[None], remove_batch_dim=True)
            # It takes texts; these tokens are of none.
            bridge.to_tokens = lambda _text, sequence=sequence: sequence[None]
            for name, factor in per_place.items():
                score = detect_head(bridge, "tokens", f"{name}_head", cache=cache)
                found[name].append(score.double().cpu() * factor)
        return {name: torch.stack(one).mean(dim=0) for name, one in found.items()}

    return detect


if __name__ == "__main__":
    main()
