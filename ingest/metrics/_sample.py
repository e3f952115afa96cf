"""Which tokens stand for all others."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

SIZE = 2_048
SEED = 0


def sample_tokens(ordinary: Sequence[int], n: int = SIZE) -> Int[Tensor, " token"]:
    """`n` distinct ids, ascending, or all where there are no more; the same on every machine."""
    # Raw numbers of a bit generator never change; permutations of torch and numpy may.
    drawn = np.random.PCG64(SEED).random_raw(len(ordinary))
    chosen = np.argsort(drawn, kind="stable")[:n]
    return torch.tensor(sorted(ordinary[index] for index in chosen), dtype=torch.long)
