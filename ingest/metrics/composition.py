"""How much of what one earlier head writes a head reads."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import CompositionFunction, composition_metric

READS = {"query": "in its queries", "key": "in its keys", "value": "in its values"}
"""What a later head reads with, by kind of composition."""


def _largest(where: str) -> CompositionFunction:
    def largest(scores: Float[Tensor, "*head n"]) -> Float[Tensor, "*head"]:
        found = scores.nan_to_num(nan=-torch.inf).amax(dim=-1)
        return found.where(found > -torch.inf, torch.nan)

    largest.__doc__ = f"Largest share of an earlier head's output that the head reads {where}."
    return largest


for _kind, _where in READS.items():
    composition_metric(
        name=f"{_kind}_composition",
        version=1,
        needs=(_kind,),
        source=(
            "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (composition "
            "scores); largest |AB| / (|A| |B|) over all heads of earlier layers, where random "
            "matrices have 1/sqrt(d_model); no norms or rotary embeddings folded in"
        ),
    )(_largest(_where))
