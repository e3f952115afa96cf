"""Where a run's numbers come from: versions, device, memory."""

import contextlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# Of Linux: what the process uses, and how to begin a new peak (man 5 proc).
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, Any]:
    """Of the code, its commit, Python and the packages that compute."""
    return {
        "head-catalog": version("head-catalog"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def _commit() -> str | None:
    """The checkout's commit, with `-dirty` where it has changes; None for an installed release."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def device_name(device: str) -> str:
    """A device as a run states it: with the name of its model where it has one."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if _is_cuda(device) else device


def _is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def forget_peak_memory(device: str) -> None:
    """Let a run's peak be its own, not that of what the process did before."""
    if _is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_memory(device: str) -> int | None:
    """Bytes, of the device where it has its own memory, else of the process."""
    if _is_cuda(device):
        return torch.cuda.max_memory_allocated(device)
    if not _STATUS.exists():
        return None
    peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
