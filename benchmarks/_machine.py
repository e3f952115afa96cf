"""What the machine can do, and what a piece of work took of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""proc(5): resets VmHWM to what is resident now."""


@dataclass(kw_only=True)
class Usage:
    """Of one piece of work; filled in when it ends.

    `cpu_seconds` are of all threads, so they are what shared cores leave comparable.
    `peak_megabytes` is the whole process's, or of a GPU what torch held there; `base_megabytes`
    what it held before.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    base_megabytes: float = 0.0
    peak_megabytes: float = 0.0


@contextmanager
def measured(device: str = "cpu") -> Iterator[Usage]:
    """Time and memory of the block, memory by the kernel's account or by torch's of a GPU."""
    usage = Usage()
    _forget_peak(device)
    usage.base_megabytes = _peak_megabytes(device)
    wall, cpu = time.perf_counter(), time.process_time()
    yield usage
    usage.peak_megabytes = _peak_megabytes(device)
    usage.seconds = time.perf_counter() - wall
    usage.cpu_seconds = time.process_time() - cpu


def product_rate(*, size: int = 2_048, repeats: int = 10) -> float:
    """GFLOP/s of the best of some square float32 products, with the threads that torch has."""
    factor = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        factor @ factor
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best / 1e9


def _forget_peak(device: str) -> None:
    if device == "cpu":
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    else:
        torch.cuda.reset_peak_memory_stats(device)


def _peak_megabytes(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e6
