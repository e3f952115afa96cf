"""How much goes through a model at a time, and going on where that does not fit in memory."""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import torch

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What torch says on GPUs and on CPUs."""

_share: ContextVar[float] = ContextVar("batch share", default=1.0)

T = TypeVar("T")


@contextlib.contextmanager
def batches(share: float) -> Iterator[None]:
    """Let batches be this share of their usual sizes, which changes no score."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def sized(usual: int) -> int:
    """A size of batches, in bytes or any other unit, with the share that is to be taken."""
    return max(1, int(usual * _share.get()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was lacking, of the host or of a device."""
    if isinstance(error, RuntimeError):
        return _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def if_it_fits(work: Callable[[], T], device: torch.device) -> T | None:
    """What the work gives; None where it takes more memory than there is."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
