"""Going on where a batch does not fit in memory."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What torch says on GPUs and on CPUs."""

T = TypeVar("T")


def if_it_fits(work: Callable[[], T], device: torch.device) -> T | None:
    """What the work gives; None where it takes more memory than there is."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
