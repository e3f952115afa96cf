"""Metrics of ranks: what a head's weights write of a token, as logits of all tokens.

Of the token s that it reads, a head's weights write, up to a factor of the layer, logits
l(u) = sign [u = m(s)] + g l_u, for m the identity (copier, induction, and suppressor with sign
-1), the relation's pairs, or nothing; g is LADDER times what weights make of `one` over what they
make of a token's code. All ranks follow.
"""

import math
from collections.abc import Callable, Mapping

from ingest.planted.design import LADDER, MLP_ONE, MLP_TOKEN, SPECIAL, Design, Role
from ingest.planted.truth._expected import Facts


def mapping(design: Design, role: Role | None) -> Mapping[int, int]:
    """m: which token's output direction a head writes for which token."""
    if role in (Role.COPIER, Role.SUPPRESSOR, Role.INDUCTION):
        return {token: token for token in range(design.vocabulary)}
    return design.pairs if role is Role.RELATION else {}


def logits(design: Design, layer: int, role: Role, source: int, *, after_mlp: bool) -> list[float]:
    """What a head's weights write of a token, as logits of all tokens, up to a positive factor.

    Args:
        design: Of the model.
        layer: Where the head is.
        role: What it does.
        source: The token.
        after_mlp: Whether the head reads the first MLP's output, rather than the embedding.
    """
    read = design.read(layer)
    ladder = LADDER * read["one"] / read["token"]
    if after_mlp:
        ladder *= MLP_ONE / MLP_TOKEN
    found = [ladder * design.ladder(token) for token in range(design.vocabulary)]
    target = mapping(design, role).get(source)
    if target is not None:
        found[target] += -1.0 if role is Role.SUPPRESSOR else 1.0
    return found


Ranked = Callable[[Design, int, Role, Facts], float]


def _ranks(
    design: Design, head: tuple[int, Role], pairs: Mapping[int, int], sign: int, *, after_mlp: bool
) -> list[int]:
    """How many logits, or negated logits, are larger than the target's; one rank a pair."""
    ranks = []
    for source, target in pairs.items():
        found = [sign * one for one in logits(design, *head, source, after_mlp=after_mlp)]
        ranks.append(sum(one > found[target] for one in found))
    return ranks


def _hits(sign: int, depth: int | None) -> Ranked:
    def hits(design: Design, layer: int, role: Role, facts: Facts) -> float:
        ranks = _ranks(design, (layer, role), facts.pairs, sign, after_mlp=layer > 0)
        return sum(rank < (depth or facts.k) for rank in ranks) / len(ranks)

    return hits


def _mrr(sign: int, depth: int) -> Ranked:
    def mrr(design: Design, layer: int, role: Role, facts: Facts) -> float:
        ranks = _ranks(design, (layer, role), facts.pairs, sign, after_mlp=layer > 0)
        return math.fsum(1 / (rank + 1) for rank in ranks if rank < depth) / len(ranks)

    return mrr


def _copied(sign: int, depth: int) -> Ranked:
    def copied(design: Design, layer: int, role: Role, _facts: Facts) -> float:
        own = {token: token for token in range(len(SPECIAL), design.vocabulary)}
        ranks = _ranks(design, (layer, role), own, sign, after_mlp=False)
        return sum(rank < depth for rank in ranks) / len(ranks)

    return copied


RANKED: Mapping[str, Ranked] = {
    "relation_score": _hits(1, None),
    "relation_suppression": _hits(-1, None),
    "relation_mrr_25": _mrr(1, 25),
    "relation_suppression_mrr_25": _mrr(-1, 25),
    **{f"relation_hits_{depth}": _hits(1, depth) for depth in (1, 5, 10, 25)},
    **{f"relation_suppression_hits_{depth}": _hits(-1, depth) for depth in (1, 5, 10, 25)},
    "copying_hits_1": _copied(1, 1),
    "copying_hits_10": _copied(1, 10),
    "copying_suppression_10": _copied(-1, 10),
}
