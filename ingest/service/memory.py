"""How large a model is, from the headers of its files, and whether it fits on a device.

Nothing is loaded, and of a model on the Hub nothing but headers is fetched.
"""

import json
import math
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from catalog.errors import HeadsError, UsageError
from catalog.pattern_rows import SUITE as STORED_PATTERNS

GIB = 2**30
T = TypeVar("T")
_RUNNING = {"patterns", "dynamic", STORED_PATTERNS}
"""Suites that run the model; the others read its weights layer by layer.

Measured on SmolLM2-135M on a CPU, estimates in brackets: relations 1.0 GiB (1.2), weights 1.1
(1.4), salient 1.3 (1.2). They lean low: what does not fit after all is tried with smaller batches,
and a refusal is final.
"""
_ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROGRAM = GIB // 2
"""Of the process itself: Python, torch and its libraries."""
_ACTIVATIONS = GIB // 2
"""Of what batches hold while a model runs."""
_READING = GIB // 2
"""Of what work on one layer holds besides its matrices."""
_COMPOSITIONS = 2 * GIB
"""Of the matrices that a block of layers is read with, at most."""
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters of a model: of all, of the largest layer, and outside of layers."""

    n_params: int
    in_layer: int
    outside: int
    n_layers: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a suite takes on a model's device, part by part."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        told = " + ".join(f"{size / GIB:.1f} GiB {name}" for name, size in self.parts.items())
        return f"{self.total / GIB:.1f} GiB ({told})"


def size_of(model: str, revision: str | None = None, *, within: float = 60.0) -> Size | None:
    """A model's size; None where its files do not tell, or the Hub does not answer in time.

    Args:
        model: A folder, a .gguf file or a Hub id.
        revision: On the Hub.
        within: Seconds for the Hub.
    """
    path = Path(model).expanduser()
    try:
        if path.is_file():
            shapes = dict(_gguf(path))
        elif path.is_dir():
            shapes = {k: v for file in path.glob("*.safetensors") for k, v in _safetensors(file)}
        else:
            shapes = _in_time(lambda: dict(_hub(model, revision)), within)
    except (OSError, ValueError, KeyError, struct.error):
        return None
    return _size(shapes) if shapes else None


def device_need(
    size: Size, suite: str, *, device: str, dtype: str, is_pickled: bool = False
) -> Need:
    """What one suite takes.

    Args:
        size: Of the model.
        suite: Which.
        device: `cpu` or `cuda...`; on a CPU the process itself counts.
        dtype: `auto` or how weights are loaded by suites that run the model.
        is_pickled: Pickled weights are loaded as a whole whatever the suite.
    """
    is_cpu = device == "cpu"
    if dtype == "auto":
        dtype = "float32" if is_cpu else "bfloat16"
    item = _ITEM_SIZES[dtype]
    parts: dict[str, int] = {}
    if suite in _RUNNING or is_pickled:
        parts["of weights"] = size.n_params * (item if suite in _RUNNING else 4)
    if suite in _RUNNING:
        parts["of activations"] = _ACTIVATIONS
    else:
        parts["of the vocabulary"] = 2 * 4 * size.outside
        parts["of a layer"] = 2 * 4 * size.in_layer + _READING
    if suite == "weights":
        parts["of compositions"] = min(_COMPOSITIONS, 2 * size.in_layer * size.n_layers)
    if suite == "dynamic":
        parts["of the vocabulary"] = 2 * item * size.outside
    if is_cpu:
        parts["of the program"] = _PROGRAM
    return Need(parts=parts)


def host_memory() -> int:
    """Bytes of this machine, or of the container if it has fewer."""
    total: int = psutil.virtual_memory().total
    for limit in _LIMITS:
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def device_memory(device: str) -> tuple[str, int]:
    """A device by its full name, and its bytes; asked in a process of its own.

    The worker's own process must not touch CUDA: its children could not use it then.

    Raises:
        UsageError: If there is no such device.
    """
    if device == "cpu":
        return "cpu", host_memory()
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "ingest.service.memory", device],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsageError(done.stderr.strip().rpartition("\n")[2] or f"no device {device!r}")
    name, _, memory = done.stdout.strip().rpartition("\n")[2].partition(" ")
    return name, int(memory)


def _size(shapes: Mapping[str, tuple[int, ...]]) -> Size:
    layers: dict[int, int] = {}
    outside = 0
    for name, shape in shapes.items():
        found = _LAYER.search(name)
        if found:
            layers[int(found[1])] = layers.get(int(found[1]), 0) + math.prod(shape)
        else:
            outside += math.prod(shape)
    return Size(
        n_params=outside + sum(layers.values()),
        in_layer=max(layers.values(), default=0),
        outside=outside,
        n_layers=len(layers),
    )


def _safetensors(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path} is truncated")
        header: dict[str, Any] = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tuple(tensor["shape"])


def _gguf(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from gguf import GGUFReader  # noqa: PLC0415 - slow, seldom needed

    for tensor in GGUFReader(path).tensors:
        yield tensor.name, tuple(int(n) for n in tensor.shape)


def _hub(model: str, revision: str | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    from huggingface_hub import HfApi  # noqa: PLC0415 - slow, seldom needed

    try:
        found = HfApi().get_safetensors_metadata(model, revision=revision)
    except Exception as error:  # the client lets its transport's own errors through
        raise OSError(f"the Hub says nothing of {model}") from error
    for file in found.files_metadata.values():
        for name, tensor in file.tensors.items():
            yield name, tuple(tensor.shape)


def _in_time(ask: Callable[[], T], seconds: float) -> T:
    """What is answered, given up after so many seconds, whatever the asking waits for.

    Names are resolved without a limit, rate limits are slept through, and an answer may come byte
    by byte: no option of the client bounds all of that.

    Raises:
        OSError: If the time is over.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            answer.set_exception(error)

    # A daemon: it may never end, and nobody who goes home waits for it.
    threading.Thread(target=work, name="asking the Hub", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise OSError(f"no answer in {seconds:g} s") from error


def _main(device: str) -> None:
    """Print what `device_memory` asks for."""
    import torch  # noqa: PLC0415 - only this process may

    from ingest.readers.loading import choose_device  # noqa: PLC0415

    try:
        chosen = choose_device(device)
    except HeadsError as error:
        sys.exit(str(error))
    if chosen == "cpu":
        print("cpu", host_memory())  # noqa: T201 - the answer
        return
    index = torch.device(chosen).index or 0
    print(f"cuda:{index}", torch.cuda.get_device_properties(index).total_memory)  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1])
