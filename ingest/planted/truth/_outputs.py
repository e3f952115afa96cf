"""Metrics of what heads write in a run.

At q a head writes o(q), the mean over S(q) of what it writes of a token: LADDER of the
ladder, and a code into `previous` or `output`, or none. All parts are orthogonal, so that

- output_norm is LADDER for heads that write the ladder alone, sqrt(1 + LADDER^2) for the
  previous-token and the induction head, and for a copier sqrt(sum of squares of the tokens' shares
  of 0 ... q, + LADDER^2);
- residual_share: n heads of a layer write n LADDER of the ladder; where one of them also writes a
  code of length 1, it has (n LADDER^2 + 1) / (n^2 LADDER^2 + 1) of it all, each other
  n LADDER^2 / (n^2 LADDER^2 + 1), and 1 / n where none does;
- the logit of u is the final norm's factor, known since all lengths are, times o's part c_u of
  `output` and l_u times its ladder. Of all u on average the ladder gives 0, a code 1 / V;
- retrieval: the model says the u with the largest logit. While it says a needle again, the
  induction head attends to the needle's next token: its score is the share of the needle that the
  model says, and that of heads which attend to one other token is 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.planted.design import LADDER, Design, Role
from ingest.planted.truth._expected import (
    ABSENT,
    SHARPNESS,
    Expected,
    Facts,
    Heads,
    Keys,
    NotDerivedError,
)
from ingest.planted.truth._patterns import attended
from ingest.planted.truth._ranks import mapping


@lru_cache(maxsize=256)
def _written(
    design: Design, role: Role, tokens: tuple[int, ...]
) -> Float[Tensor, "position direction"]:
    """o(q) for every position q: the codes of `previous`, those of `output`, and the ladder."""
    n, v = len(tokens), design.vocabulary
    attention = torch.zeros(n, n, dtype=torch.float64)
    for q, keys in enumerate(attended(design, role, tokens)):
        attention[q, list(keys)] = 1 / len(keys)
    of_token = torch.zeros(v, 2 * v + 1, dtype=torch.float64)
    of_token[:, -1] = LADDER
    if role is Role.PREVIOUS:
        of_token[range(v), range(v)] = 1
    for source, target in mapping(design, role).items():
        of_token[source, v + target] = -1 if role is Role.SUPPRESSOR else 1
    return attention @ of_token[list(tokens)]


def _added(
    design: Design, heads: Heads, layer: int, tokens: Sequence[int]
) -> Float[Tensor, "position direction"]:
    """What all heads of a layer write."""
    roles = [role for role, place in heads.items() if place[0] == layer]
    idle = [Role.UNIFORM] * (design.n_heads - len(roles))
    written = [_written(design, role, tuple(tokens)) for role in [*roles, *idle]]
    return torch.stack(written).sum(dim=0)


def _stream(
    design: Design, heads: Heads, tokens: Sequence[int]
) -> Float[Tensor, "position direction"]:
    """What all heads write, at the end; tokens, `one` and positions are not in it."""
    layers = [_added(design, heads, layer, tokens) for layer in range(design.n_layers)]
    return torch.stack(layers).sum(dim=0)


def _logits(
    design: Design, stream: Float[Tensor, "position direction"]
) -> Float[Tensor, "position vocab"]:
    """Before the final norm's factor."""
    v = design.vocabulary
    ladder = torch.tensor([design.ladder(token) for token in range(v)], dtype=torch.float64)
    return stream[:, v : 2 * v] + stream[:, -1:] * ladder


_MOVED = 2 * SHARPNESS + ABSENT
"""How far what a head writes may be off: a code of length 1 by each row's attention; rounding."""


def _of_outputs(
    design: Design,
    heads: Heads,
    metric: str,
    role: Role,
    facts: Facts,
) -> Expected:
    values, moved = [], []
    for tokens in facts.tokens:
        own = _written(design, role, tuple(tokens))
        norm = own.norm(dim=1)
        if metric == "output_norm":
            values.append(norm)
            moved.append(torch.full_like(norm, _MOVED))
        elif metric == "residual_share":
            added = _added(design, heads, heads[role][0], tokens)
            whole = added.norm(dim=1)
            values.append((own * added).sum(dim=1) / whole**2)
            # Both are off; of each layer's heads no more than one is sharp and writes a code.
            moved.append(_MOVED * (1 / whole + 3 * norm / whole**2))
        else:
            factor = _final_factor(design, heads, tokens)[:-1]
            logits = _logits(design, own)[:-1]
            of_next = logits[range(len(tokens) - 1), list(tokens[1:])]
            of_all = logits.mean(dim=1) if metric.endswith("centered") else 0
            values.append(factor * (of_next - of_all))
            moved.append(factor * _MOVED * (1 + norm[:-1]))
    if not values:
        raise NotDerivedError(f"{metric} needs sequences")
    return Expected(value=float(torch.cat(values).mean()), tolerance=float(torch.cat(moved).mean()))


def _final_factor(
    design: Design, heads: Heads, tokens: Sequence[int]
) -> Float[Tensor, " position"]:
    """What the norm before the unembedding multiplies with, at every position."""
    fixed = {name: design.residual(1)[name] for name in ("token", "one", "position")}
    lengths = _stream(design, heads, tokens).norm(dim=1).tolist()
    factors = [design.factor(fixed | {"written": length}) for length in lengths]
    return torch.tensor(factors, dtype=torch.float64)


_CLEAR = 1e-3
"""What the model says has a logit so far above all others, before the final norm's factor."""


def _of_retrieval(
    design: Design,
    heads: Heads,
    metric: str,
    role: Role,
    facts: Facts,
) -> Expected:
    if not facts.needles:
        raise NotDerivedError(f"{metric} needs needles")
    values = []
    for tokens, needle in zip(facts.tokens, facts.needles, strict=True):
        said = _said(design, heads, tokens)
        queries = [i - 1 for i in needle.answer if said[i - 1] == tokens[i]]
        if not queries:
            continue
        attention = attended(design, role, tokens)
        copied = [
            _attended_most(attention[q], [k for k in needle.needle if tokens[k] == tokens[q + 1]])
            for q in queries
        ]
        found = [key for key in copied if key is not None]
        count = len(set(found) if metric == "retrieval" else found)
        values.append(count / len(needle.needle))
    return Expected(value=math.fsum(values) / len(values) if values else None)


def _said(design: Design, heads: Heads, tokens: Sequence[int]) -> list[int]:
    """The token with the largest logit, at every position."""
    top = _logits(design, _stream(design, heads, tokens)).topk(2, dim=1)
    if (top.values[:, 0] - top.values[:, 1]).min() < _CLEAR:
        raise NotDerivedError("two tokens have the same logit on paper")
    said: list[int] = top.indices[:, 0].tolist()
    return said


def _attended_most(keys: Keys, wanted: Sequence[int]) -> int | None:
    """Which wanted key has the most attention; None where another has it."""
    found = [key for key in wanted if key in keys]
    if found and len(keys) > 1:
        raise NotDerivedError("which of several keys is attended most is rounding")
    return found[0] if found else None


OF_RUNS: Mapping[str, Callable[[Design, Heads, str, Role, Facts], Expected]] = {
    "output_norm": _of_outputs,
    "residual_share": _of_outputs,
    "direct_logit_attribution": _of_outputs,
    "direct_logit_attribution_centered": _of_outputs,
    "retrieval": _of_retrieval,
    "retrieval_uncapped": _of_retrieval,
}
