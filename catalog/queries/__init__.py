"""What pages and commands read, each in one round trip that both databases understand.

Texts are ordered by the database, hence by its collation: sort in Python where that matters.
"""

from catalog.queries._labels import (
    USUAL_TAXONOMY,
    head_labels,
    label_counts,
    require_taxonomy,
    rule_scores,
    rules,
    taxonomies,
    taxonomy_labels,
    usual_taxonomy,
)
from catalog.queries._models import (
    model,
    models,
    require_head,
    require_model,
    runs,
)
from catalog.queries._published import (
    published_suites,
    published_versions,
)
from catalog.queries._scores import (
    MAX_ROWS,
    USUAL_PROBES,
    head,
    metrics,
    probes_of,
    relation_correlations,
    top,
)
from catalog.queries._token_classes import (
    token_choices,
    token_totals,
)
from catalog.queries._weights import (
    compositions,
    reading,
    salient,
    writing,
)

__all__ = [
    "MAX_ROWS",
    "USUAL_PROBES",
    "USUAL_TAXONOMY",
    "compositions",
    "head",
    "head_labels",
    "label_counts",
    "metrics",
    "model",
    "models",
    "probes_of",
    "published_suites",
    "published_versions",
    "reading",
    "relation_correlations",
    "require_head",
    "require_model",
    "require_taxonomy",
    "rule_scores",
    "rules",
    "runs",
    "salient",
    "taxonomies",
    "taxonomy_labels",
    "token_choices",
    "token_totals",
    "top",
    "usual_taxonomy",
    "writing",
]
