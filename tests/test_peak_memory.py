"""The suite on attention patterns keeps one layer's patterns, however many layers there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATTERNS = 8 << 20
"""Bytes of one layer's patterns in a batch: 4 sequences, 8 heads, 256 x 256 of float32."""
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Else the C library's heap keeps what was freed, in holes, and the kernel counts it."""
MEASURE = """
import multiprocessing, re, sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ingest.metrics import OUTPUT_METRICS, PATTERN_GROUP_METRICS, PATTERN_METRICS
from ingest.probes.sequences import Encoded, Needle
from ingest.progress import Silence
from ingest.readers.loading import LoadedModel
from ingest.suites._passes import measure

STATUS = Path("/proc/self/status")


def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", STATUS.read_text())[1]) * 1024


def suite(model, length):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (4, length), generator=generator)
    tokens[:, -4:] = tokens[:, :4]
    needle = Needle(needle=range(4), answer=range(length - 4, length))
    classes = {"even": [[token % 2 == 0 for token in one] for one in tokens.tolist()]}
    texts = Encoded(
        tokens=tokens.tolist(), bos=0, period=None, classes=classes, needles=[needle] * 4
    )
    block = tokens[:, : length // 2]
    blocks = torch.cat([block, block], dim=1).tolist()
    loaded = LoadedModel(name="m", model=model)
    names = set()
    for encoded in (texts, Encoded(tokens=blocks, bos=0, period=length // 2)):
        names |= measure(loaded, encoded, "p", Silence()).scores().keys()
    assert names >= {*PATTERN_METRICS, *PATTERN_GROUP_METRICS, *OUTPUT_METRICS, "token_mass[even]"}
    assert "retrieval" in names


def whole(model, length):
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        model(torch.zeros(4, length, dtype=torch.long), output_attentions=True, use_cache=False)


def peak(case):
    run, n_layers = case
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=8, vocab_size=64)
    config = AutoConfig.for_model("llama", num_hidden_layers=n_layers, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    globals()[run](model, 8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = status("VmRSS")
    globals()[run](model, 256)
    return status("VmHWM") - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = [(run, n_layers) for run in ("suite", "whole") for n_layers in (4, 32)]
    # Each in a process of its own, which has no memory to use again.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(*pool.map(peak, cases, chunksize=1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_patterns_does_not_grow_with_layers() -> None:
    """All metrics, of outputs too; beside it transformers' own way, which keeps every layer."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=Path(__file__).parents[1],
        env=os.environ | FREED_AT_ONCE | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many, few_whole, many_whole = map(int, done.stdout.split())
    # What is left is what each layer gives the next token's logit, by token and head.
    assert many - few < PATTERNS, (few, many)
    assert many_whole - few_whole > 0.9 * 28 * PATTERNS, (few_whole, many_whole)
    assert many < many_whole / 4
