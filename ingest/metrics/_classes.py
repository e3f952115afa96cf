"""What classes of tokens get of some rows of attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences
from ingest.rows import Rows


def class_mass(
    rows: Rows, sequences: Sequences
) -> dict[str, tuple[Float[Tensor, "batch head query"], Float[Tensor, "batch one query"]]]:
    """Per class the attention that its keys get, and their share of all keys that are allowed."""
    if not sequences.classes:
        return {}
    members = torch.stack(list(sequences.classes.values()), dim=2).to(rows.patterns.dtype)
    keys = members[:, rows.first_key : rows.stop]
    mass = (rows.patterns.flatten(1, 2) @ keys).unflatten(1, rows.patterns.shape[1:3])
    # Keys of a class before each position; those allowed are the last ones up to the query.
    before = torch.nn.functional.pad(members.cumsum(dim=1), (0, 0, 1, 0))
    query = torch.arange(rows.first, rows.stop, device=rows.patterns.device)
    found = before[:, query + 1] - before[:, query + 1 - rows.allowed]
    share = found / rows.allowed[:, None]
    return {
        name: (mass[..., place], share[:, None, :, place])
        for place, name in enumerate(sequences.classes)
    }
