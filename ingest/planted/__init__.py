"""Planted heads: models whose heads were written by hand, so that what they do is known exactly.

`plant` makes a small transformers model of the GPT-2, GPT-NeoX, Llama or Qwen2 layout. Nothing in
it is trained: each head's matrices are chosen so that its attention and what it writes follow on
paper. So a detector of attention heads can be tested against what is there:

    planted = plant("llama", seed=1)
    layer, head = planted.heads[Role.INDUCTION]
    score, tolerance = planted.expected("induction", Role.INDUCTION, facts)

How heads are made is told in `ingest.planted.design`, what detectors must find in
`ingest.planted.truth`. Related work: Lindner et al. 2023, arXiv:2301.05062 (Tracr), which compiles
programs to transformers without positions' rotation and without norms; here heads sit in layouts as
they are in use, norms, rotary embeddings and grouped queries included.
"""

from ingest.planted.design import ARCHITECTURES, Role
from ingest.planted.planting import Planted, plant
from ingest.planted.truth import Expected, Facts, NotDerivedError

__all__ = [
    "ARCHITECTURES",
    "Expected",
    "Facts",
    "NotDerivedError",
    "Planted",
    "Role",
    "plant",
]
