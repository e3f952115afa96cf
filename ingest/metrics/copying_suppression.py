"""How often a head's weights suppress the token that it reads."""

from ingest.metrics._declare import copying_metric
from ingest.metrics.copying_hits import SOURCE, hits_within

DEPTH = 10

copying_metric(name=f"copying_suppression_{DEPTH}", version=1, source=SOURCE, of_negated=True)(
    hits_within(DEPTH, "smallest")
)
