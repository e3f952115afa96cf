"""Every metric of every suite: pure functions of tensors, one short file each.

To add one: copy a file, declare its facts, give the paper and the formula, name it below, and
test it on patterns whose value can be derived on paper (tests/test_metrics.py).
"""

from ingest.metrics import (
    confidence,
    current_token,
    distance,
    distance_relative,
    distance_sink_free,
    duplicate_token,
    entropy,
    entropy_normalized,
    first_token,
    induction,
    local_8,
    previous_token,
    relation_hits,
    relation_score,
    relation_suppression,
)
from ingest.metrics._declare import (
    PATTERN_METRICS,
    RELATION_METRICS,
    Declared,
    Sequences,
)

__all__ = [
    "PATTERN_METRICS",
    "RELATION_METRICS",
    "Declared",
    "Sequences",
    "confidence",
    "current_token",
    "distance",
    "distance_relative",
    "distance_sink_free",
    "duplicate_token",
    "entropy",
    "entropy_normalized",
    "first_token",
    "induction",
    "local_8",
    "previous_token",
    "relation_hits",
    "relation_score",
    "relation_suppression",
]
