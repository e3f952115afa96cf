"""What detectors must find in planted heads, derived from what the heads are.

Patterns. At query q a planted head attends to a set S(q) of keys, each 1 / |S|, up to `SHARPNESS`:

- previous token: {q - 1}, and {0} at 0; current token: {q}; first token: {0};
- uniform, and what writes into `output`: {0 ... q};
- duplicate token: the earlier position of the same token, else {q};
- induction: the position after the earlier position of the same token, else {q - 1}, {0} at 0;
- token class: the tokens of the class so far, else {0 ... q}.

A metric of patterns is then a mean over q of a number that S(q) gives. With n positions of a block
of T distinct tokens said twice after `bos` others, for instance,

- previous_token: 1 for a previous-token head; (H_n - 1) / (n - 1) for uniform attention, H_n the
  harmonic number; (n - 1 - T) / (n - 1) for an induction head, since each token of the second copy
  follows its earlier self; 1 / (n - 1) for a first-token head, right at q = 1 only;
- duplicate_token and induction: 1 for the head of that name; for uniform attention the mean of
  1 / (q + 1) over the last T queries;
- same_token_mass and induction_mass: 1 for the duplicate-token and the induction head;
- token_mass of the design's class: 1 for the class head from the first token of the class on, the
  class's share of tokens for uniform attention, whose token_lift is therefore 1.

Writing. Of the token s that it reads, a head's weights write, up to a factor of the layer, logits
l(u) = sign [u = m(s)] + g l_u, for m the identity (copier, induction, and suppressor with sign
-1), the relation's pairs, or nothing; g is LADDER times what weights make of `one` over what they
make of a token's code. All ranks follow. As a map of embeddings, with M of ones at (s, m(s)), it
is sign M + g 1 l^T, and sum(l) = 0. So its eigenvalues are all 1 for what copies, -1 for the
suppressor; 0 for heads that write the ladder alone. The relation's M is nilpotent, for its targets
are no sources; the ladder makes that +-sqrt(g sum of l over targets), of sum 0.

In a run. At q a head writes o(q), the mean over S(q) of what it writes of a token: LADDER of the
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.planted.design import (
    EPSILON,
    LADDER,
    MLP_ONE,
    MLP_TOKEN,
    SPECIAL,
    WRITERS,
    Design,
    Role,
)
from ingest.probes.sequences import Needle

SHARPNESS = 5 * EPSILON
"""Total variation between a row of attention and its ideal, at most.

EPSILON by design; the rest is float32's rounding of scores, which are as large as a few thousand,
times at most EPSILON and of scores that are equal on paper.
"""
_ROUNDING = 1e-4
"""Relative, of norms and eigenvalues: weights are float32, of a defective matrix at worst."""
_ABSENT = 1e-5
"""Of what is 0 on paper and computed as a sum."""

Keys = Sequence[int]
Heads = Mapping[Role, tuple[int, int]]
"""Layer and head by role."""


class NotDerivedError(ValueError):
    """What is asked for does not follow from the design; nothing is wrong with the head."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A metric's value on paper, None where it is undefined; and how far off the model may be."""

    value: float | None
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a metric is measured on: token sequences, or a relation's pairs."""

    tokens: Sequence[Sequence[int]] = ()
    period: int | None = None
    """As in probes: the length of a block that is said twice, where that is all there is."""
    bos: int = 0
    needles: Sequence[Needle] = ()
    """One per sequence, or none at all."""
    pairs: Mapping[int, int] = field(default_factory=dict)
    k: int = 10


def expected(
    design: Design,
    heads: Heads,
    metric: str,
    role: Role,
    facts: Facts | None = None,
) -> Expected:
    """A metric's value on a planted head.

    Args:
        design: Of the model.
        heads: Where each role's is.
        metric: Its name in the catalog, without a relation's or class's; of classes, the metric of
            the design's.
        role: Which head.
        facts: Sequences for metrics of patterns and outputs, needles for those of retrieval, pairs
            and k for those of relations.

    Raises:
        NotDerivedError: If it does not follow from the design: an unknown metric, a token said so
            often that a head's attention is divided, or a rank among equals.
    """
    facts = facts or Facts()
    if metric in _OF_PATTERNS:
        return _OF_PATTERNS[metric](design, metric, role, facts)
    if metric in _OF_RUNS:
        return _OF_RUNS[metric](design, heads, metric, role, facts)
    if metric in _RANKED:
        return Expected(value=_RANKED[metric](design, heads[role][0], role, facts))
    if metric in _OF_WEIGHTS:
        return _OF_WEIGHTS[metric](design, heads[role][0], role)
    raise NotDerivedError(f"nothing is derived for {metric}")


# --- patterns ---


def attended(design: Design, role: Role, tokens: Sequence[int]) -> list[Keys]:
    """S(q) for every position q of a sequence.

    Raises:
        NotDerivedError: If a head that looks for one token finds several.
    """
    return [_keys(design, role, tokens, q) for q in range(len(tokens))]


def _keys(design: Design, role: Role, tokens: Sequence[int], q: int) -> Keys:
    token, back = tokens[q], [max(q - 1, 0)]
    keys: Keys = range(q + 1)
    if role is Role.PREVIOUS:
        keys = back
    elif role is Role.CURRENT:
        keys = [q]
    elif role is Role.FIRST:
        keys = [0]
    elif role is Role.DUPLICATE:
        keys = _only([k for k in range(q) if tokens[k] == token], [q])
    elif role is Role.INDUCTION:
        if q and tokens[q - 1] == token:
            raise NotDerivedError(f"token {token} follows itself at {q}")
        keys = _only([k for k in range(1, q + 1) if tokens[k - 1] == token], back)
    elif role is Role.CLASS:
        keys = [k for k in range(q + 1) if tokens[k] in design.token_class] or list(keys)
    return keys


def _only(found: Keys, otherwise: Keys) -> Keys:
    if len(found) > 1:
        raise NotDerivedError(f"a token is repeated more than once, at {list(found)}")
    return found or otherwise


def _share(keys: Keys, wanted: Iterable[int]) -> float:
    return len(set(wanted).intersection(keys)) / len(keys)


def _strict(keys: Keys, wanted: int) -> float:
    """1 if the key is attended more than all others; a tie does not count."""
    if wanted not in keys or len(keys) == 1:
        return float(wanted in keys)
    if not isinstance(keys, range):
        raise NotDerivedError("scores that are equal on paper only may or may not be a tie")
    return 0.0  # without a query, all scores are 0 to the last bit


def _mean_distance(keys: Keys, q: int) -> float:
    if not keys:
        raise NotDerivedError("all attention is on the first token: what is left is rounding")
    return sum(q - k for k in keys) / len(keys)


Row = Callable[[Keys, int, int], float]
_OF_ROWS: Mapping[str, tuple[int, Row]] = {
    "previous_token": (1, lambda keys, q, _: _share(keys, [q - 1])),
    "current_token": (1, lambda keys, q, _: _share(keys, [q])),
    "first_token": (1, lambda keys, _q, _: _share(keys, [0])),
    "local_8": (8, lambda keys, q, _: _share(keys, range(q - 7, q + 1))),
    "confidence": (1, lambda keys, _q, _: 1 / len(keys)),
    "entropy": (0, lambda keys, _q, _: math.log(len(keys))),
    "entropy_normalized": (1, lambda keys, q, _: math.log(len(keys)) / math.log(q + 1)),
    "distance": (1, lambda keys, q, _: _mean_distance(keys, q)),
    "distance_relative": (1, lambda keys, q, _: _mean_distance(keys, q) / q),
    "distance_sink_free": (1, lambda keys, q, _: _mean_distance([k for k in keys if k], q)),
    # The second copy begins at the period, counted without BOS.
    "duplicate_token": (-1, lambda keys, q, period: _share(keys, [q - period])),
    "induction": (-1, lambda keys, q, period: _share(keys, [q - period + 1])),
    "previous_token_strict": (1, lambda keys, q, _: _strict(keys, q - 1)),
    "duplicate_token_strict": (-1, lambda keys, q, period: _strict(keys, q - period)),
    "induction_strict": (-1, lambda keys, q, period: _strict(keys, q - period + 1)),
}
"""By metric: the first query that counts (-1: that of the second copy), and its value there."""


def _of_rows(design: Design, metric: str, role: Role, facts: Facts) -> Expected:
    first, value = _OF_ROWS[metric]
    if first < 0 and facts.period is None:
        raise NotDerivedError(f"{metric} needs a block said twice")
    period = facts.period or 0
    start = first if first >= 0 else facts.bos + period
    values = [
        value(keys, q, period)
        for tokens in facts.tokens
        for q, keys in enumerate(attended(design, role, tokens))
        if q >= start
    ]
    if not values:
        raise NotDerivedError(f"no position counts for {metric}")
    length = max(map(len, facts.tokens))
    return Expected(value=math.fsum(values) / len(values), tolerance=_tolerance(metric, length))


_OF_SAME_TOKEN = {"same_token_mass": 0, "induction_mass": 1}
"""By metric, how far behind earlier occurrences of a query's token the keys lie."""


def _of_same_token(design: Design, metric: str, role: Role, facts: Facts) -> Expected:
    if facts.period is not None:
        raise NotDerivedError(f"{metric} is of texts")
    values = []
    for tokens in facts.tokens:
        for q, keys in enumerate(attended(design, role, tokens)):
            earlier = [k for k in range(q) if tokens[k] == tokens[q]]
            if earlier:
                values.append(_share(keys, [k + _OF_SAME_TOKEN[metric] for k in earlier]))
    if not values:
        return Expected(value=None)
    return Expected(value=math.fsum(values) / len(values), tolerance=SHARPNESS)


_OF_CLASS = ("token_mass", "token_mass_last", "token_lift")


def _of_class(design: Design, metric: str, role: Role, facts: Facts) -> Expected:
    mass, share = [], []
    for tokens in facts.tokens:
        members = {k for k, token in enumerate(tokens) if token in design.token_class}
        first = len(tokens) - 1 if metric == "token_mass_last" else 1
        for q, keys in list(enumerate(attended(design, role, tokens)))[first:]:
            mass.append(_share(keys, members))
            share.append(len(members & set(range(q + 1))) / (q + 1))
    if metric != "token_lift":
        return Expected(value=math.fsum(mass) / len(mass), tolerance=SHARPNESS)
    if not sum(share):
        return Expected(value=None)
    per = math.fsum(share) / len(mass)
    return Expected(value=math.fsum(mass) / len(mass) / per, tolerance=SHARPNESS / per)


def _tolerance(metric: str, length: int) -> float:
    """How far a metric moves where rows move by `SHARPNESS` in total variation."""
    t = SHARPNESS
    if metric.startswith("entropy"):
        # Audenaert 2007, arXiv:quant-ph/0610146: |H - H'| <= t ln(n - 1) + h(t).
        moved = t * math.log(length) - t * math.log(t) - (1 - t) * math.log1p(-t)
        return moved if metric == "entropy" else moved / math.log(2)
    if metric == "distance":
        return t * length
    if metric == "distance_sink_free":
        # Of a row with 1 / |S| or more beside key 0, renormalised: 2 t n / (1 / 2).
        return 4 * t * length
    return t


def _positional(design: Design, _metric: str, role: Role, facts: Facts) -> Expected:
    """1 - sum_b |P_b - mean_b P|^2 / sum_b |P_b - u|^2: 1 if S does not depend on tokens."""
    if len(facts.tokens) < 2 or len(set(map(len, facts.tokens))) > 1:  # noqa: PLR2004 - a pair
        raise NotDerivedError("positional needs at least two sequences, of one length")
    patterns = [attended(design, role, tokens) for tokens in facts.tokens]
    n, apart, deviation = len(patterns), 0.0, 0.0
    for q, rows in enumerate(zip(*patterns, strict=True)):
        attention = [sum(1 / len(keys) for keys in rows if k in keys) / n for k in range(q + 1)]
        squares = math.fsum(1 / len(keys) for keys in rows)
        apart += squares - n * math.fsum(mean**2 for mean in attention)
        deviation += squares - n / (q + 1)
    if deviation < _ABSENT:
        return Expected(value=None)  # uniform attention: 0 / 0
    # A row that moves by t in total variation moves its squared distances by at most 8 t.
    moved = 8 * SHARPNESS * n * len(facts.tokens[0]) / deviation
    return Expected(value=1 - apart / deviation, tolerance=moved)


_OF_PATTERNS: Mapping[str, Callable[[Design, str, Role, Facts], Expected]] = {
    **dict.fromkeys(_OF_ROWS, _of_rows),
    **dict.fromkeys(_OF_SAME_TOKEN, _of_same_token),
    **dict.fromkeys(_OF_CLASS, _of_class),
    "positional": _positional,
}


# --- what heads write in a run ---


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


_MOVED = 2 * SHARPNESS + _ABSENT
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


_OF_RUNS: Mapping[str, Callable[[Design, Heads, str, Role, Facts], Expected]] = {
    "output_norm": _of_outputs,
    "residual_share": _of_outputs,
    "direct_logit_attribution": _of_outputs,
    "direct_logit_attribution_centered": _of_outputs,
    "retrieval": _of_retrieval,
    "retrieval_uncapped": _of_retrieval,
}


# --- ranks of logits ---


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


_RANKED: Mapping[str, Ranked] = {
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


# --- matrices ---


def _singular(design: Design, layer: int, role: Role) -> list[float]:
    """Singular values of W_V W_O: its parts are orthogonal, so they are the parts' lengths."""
    size = design.vocabulary if role is Role.PREVIOUS else len(mapping(design, role))
    read = design.read(layer)
    return [read["token"]] * size + [read["one"] * LADDER]


def _ov_norm(design: Design, layer: int, role: Role) -> Expected:
    value = math.hypot(*_singular(design, layer, role))
    return Expected(value=value, tolerance=_ROUNDING * value)


def _ov_effective_rank(design: Design, layer: int, role: Role) -> Expected:
    sigma = _singular(design, layer, role)
    shares = [one / math.fsum(sigma) for one in sigma]
    value = math.exp(-math.fsum(share * math.log(share) for share in shares))
    return Expected(value=value, tolerance=_ROUNDING * value)


def _ov_copying(_design: Design, _layer: int, role: Role) -> Expected:
    _refuse_nilpotent(role, Role.PREVIOUS)
    values = {Role.COPIER: 1.0, Role.INDUCTION: 1.0, Role.SUPPRESSOR: -1.0, Role.RELATION: 0.0}
    return Expected(value=values.get(role), tolerance=_ROUNDING)


def _ov_positive(_design: Design, _layer: int, role: Role) -> Expected:
    _refuse_nilpotent(role, Role.PREVIOUS, Role.RELATION)
    values = {Role.COPIER: 1.0, Role.INDUCTION: 1.0, Role.SUPPRESSOR: 0.0}
    return Expected(value=values.get(role))


def _refuse_nilpotent(role: Role, *nilpotent: Role) -> None:
    """A nilpotent map's eigenvalues are 0, and as computed the root of rounding."""
    if role in nilpotent:
        raise NotDerivedError(f"eigenvalues of the {role} head are rounding")


def _no_query(design: Design, role: Role) -> bool:
    """Whether W_Q is zero: there is no query, or it is a bias."""
    constant = design.layout.biased and not design.learned
    return role in (Role.UNIFORM, *WRITERS) or (constant and not design.match(role))


def _key_composition(design: Design, layer: int, role: Role) -> Expected:
    """sqrt(V / ((V + LADDER^2) (V + V r^2 + c^2))) for the induction head, otherwise 0.

    The previous-token head's OV is an identity of size V, and the ladder. Of the induction head's
    W_K W_Q^T, what reads `previous` is an identity of size V, too; beside it stand what reads
    `token`, r times that, and the clock, of norm c: neither meets what is written. So the product
    of both has norm sqrt(V).
    """
    if layer == 0 or _no_query(design, role):
        return Expected(value=None)
    if role is not Role.INDUCTION:
        return Expected(value=0.0, tolerance=_ABSENT)
    read, v = design.read(layer), design.vocabulary
    content = design.match(role) * read["token"] * read["previous"]
    clock = _clock_norm(design, role, read)
    others = v * (read["token"] / read["previous"]) ** 2 + (clock / content) ** 2
    value = math.sqrt(v / ((v + LADDER**2) * (v + others)))
    return Expected(value=value, tolerance=_ROUNDING)


def _clock_norm(design: Design, role: Role, read: Mapping[str, float]) -> float:
    """Of the clock's part of W_Q W_K^T, no turning applied."""
    told = design.kernel(role)
    if told is None or (design.layout.biased and not design.learned):
        return 0.0
    b, kernel = told
    if design.learned:
        turns = math.sqrt(2 * float((kernel.weights**2).sum()))
        return abs(b) * turns * len(kernel.weights) * read["position"] ** 2
    return abs(b * float((kernel.weights * kernel.phases.cos()).sum())) * read["one"] ** 2


def _query_composition(design: Design, layer: int, role: Role) -> Expected:
    """No query reads what a head has written."""
    absent = layer == 0 or _no_query(design, role)
    return Expected(value=None if absent else 0.0, tolerance=_ABSENT)


def _value_composition(_design: Design, layer: int, _role: Role) -> Expected:
    """No value reads what a head has written."""
    return Expected(value=0.0 if layer else None, tolerance=_ABSENT)


def _positional_previous(design: Design, _layer: int, role: Role) -> Expected:
    """Without tokens nothing matches; the norm then makes positions longer, hence sharper."""
    if not design.learned:
        return Expected(value=None)
    if role is Role.DUPLICATE:
        raise NotDerivedError("without tokens the head attends to where its kernel is least")
    n = design.context
    known = {Role.PREVIOUS: 1.0, Role.INDUCTION: 1.0, Role.CURRENT: 0.0, Role.FIRST: 1 / (n - 1)}
    uniform = math.fsum(1 / (q + 1) for q in range(1, n)) / (n - 1)
    return Expected(value=known.get(role, uniform), tolerance=SHARPNESS)


_OF_WEIGHTS: Mapping[str, Callable[[Design, int, Role], Expected]] = {
    "ov_norm": _ov_norm,
    "ov_effective_rank": _ov_effective_rank,
    "ov_copying": _ov_copying,
    "ov_positive_eigenvalues": _ov_positive,
    "key_composition": _key_composition,
    "query_composition": _query_composition,
    "value_composition": _value_composition,
    "positional_previous_token": _positional_previous,
}
