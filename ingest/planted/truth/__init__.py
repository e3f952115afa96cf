"""What detectors must find in planted heads, derived from what the heads are.

Each kind of metric has a file of its own, which begins with the derivation.
"""

from ingest.planted.design import Design, Role
from ingest.planted.truth._expected import SHARPNESS, Expected, Facts, Heads, NotDerivedError
from ingest.planted.truth._matrices import OF_WEIGHTS
from ingest.planted.truth._outputs import OF_RUNS
from ingest.planted.truth._patterns import OF_PATTERNS, attended
from ingest.planted.truth._ranks import RANKED, logits, mapping

__all__ = [
    "SHARPNESS",
    "Expected",
    "Facts",
    "NotDerivedError",
    "attended",
    "expected",
    "logits",
    "mapping",
]


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
    if metric in OF_PATTERNS:
        return OF_PATTERNS[metric](design, metric, role, facts)
    if metric in OF_RUNS:
        return OF_RUNS[metric](design, heads, metric, role, facts)
    if metric in RANKED:
        return Expected(value=RANKED[metric](design, heads[role][0], role, facts))
    if metric in OF_WEIGHTS:
        return OF_WEIGHTS[metric](design, heads[role][0], role)
    raise NotDerivedError(f"nothing is derived for {metric}")
