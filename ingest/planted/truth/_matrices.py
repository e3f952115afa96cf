"""Metrics of weights: norms, effective ranks, eigenvalues and compositions.

As a map of embeddings, with M of ones at (s, m(s)), what `_ranks` has as logits is
sign M + g 1 l^T, and sum(l) = 0. So its eigenvalues are all 1 for what copies, -1 for the
suppressor; 0 for heads that write the ladder alone. The relation's M is nilpotent, for its targets
are no sources; the ladder makes that +-sqrt(g sum of l over targets), of sum 0.
"""

import math
from collections.abc import Callable, Mapping

from ingest.planted.design import LADDER, WRITERS, Design, Role
from ingest.planted.truth._expected import ABSENT, ROUNDING, SHARPNESS, Expected, NotDerivedError
from ingest.planted.truth._ranks import mapping


def _singular(design: Design, layer: int, role: Role) -> list[float]:
    """Singular values of W_V W_O: its parts are orthogonal, so they are the parts' lengths."""
    size = design.vocabulary if role is Role.PREVIOUS else len(mapping(design, role))
    read = design.read(layer)
    return [read["token"]] * size + [read["one"] * LADDER]


def _ov_norm(design: Design, layer: int, role: Role) -> Expected:
    value = math.hypot(*_singular(design, layer, role))
    return Expected(value=value, tolerance=ROUNDING * value)


def _ov_effective_rank(design: Design, layer: int, role: Role) -> Expected:
    sigma = _singular(design, layer, role)
    shares = [one / math.fsum(sigma) for one in sigma]
    value = math.exp(-math.fsum(share * math.log(share) for share in shares))
    return Expected(value=value, tolerance=ROUNDING * value)


def _ov_copying(_design: Design, _layer: int, role: Role) -> Expected:
    _refuse_nilpotent(role, Role.PREVIOUS)
    values = {Role.COPIER: 1.0, Role.INDUCTION: 1.0, Role.SUPPRESSOR: -1.0, Role.RELATION: 0.0}
    return Expected(value=values.get(role), tolerance=ROUNDING)


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
        return Expected(value=0.0, tolerance=ABSENT)
    read, v = design.read(layer), design.vocabulary
    content = design.match(role) * read["token"] * read["previous"]
    clock = _clock_norm(design, role, read)
    others = v * (read["token"] / read["previous"]) ** 2 + (clock / content) ** 2
    value = math.sqrt(v / ((v + LADDER**2) * (v + others)))
    return Expected(value=value, tolerance=ROUNDING)


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
    return Expected(value=None if absent else 0.0, tolerance=ABSENT)


def _value_composition(_design: Design, layer: int, _role: Role) -> Expected:
    """No value reads what a head has written."""
    return Expected(value=0.0 if layer else None, tolerance=ABSENT)


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


OF_WEIGHTS: Mapping[str, Callable[[Design, int, Role], Expected]] = {
    "ov_norm": _ov_norm,
    "ov_effective_rank": _ov_effective_rank,
    "ov_copying": _ov_copying,
    "ov_positive_eigenvalues": _ov_positive,
    "key_composition": _key_composition,
    "query_composition": _query_composition,
    "value_composition": _value_composition,
    "positional_previous_token": _positional_previous,
}
