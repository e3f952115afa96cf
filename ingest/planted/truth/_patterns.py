"""Metrics of attention patterns.

At query q a planted head attends to a set S(q) of keys, each 1 / |S|, up to `SHARPNESS`:

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
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ingest.planted.design import Design, Role
from ingest.planted.truth._expected import ABSENT, SHARPNESS, Expected, Facts, Keys, NotDerivedError


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
    if deviation < ABSENT:
        return Expected(value=None)  # uniform attention: 0 / 0
    # A row that moves by t in total variation moves its squared distances by at most 8 t.
    moved = 8 * SHARPNESS * n * len(facts.tokens[0]) / deviation
    return Expected(value=1 - apart / deviation, tolerance=moved)


OF_PATTERNS: Mapping[str, Callable[[Design, str, Role, Facts], Expected]] = {
    **dict.fromkeys(_OF_ROWS, _of_rows),
    **dict.fromkeys(_OF_SAME_TOKEN, _of_same_token),
    **dict.fromkeys(_OF_CLASS, _of_class),
    "positional": _positional,
}
