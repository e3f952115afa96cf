"""What is measured in a catalog drawn from a seed: suites, metrics and probes of this release."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks._drawn_models import digest
from catalog.declarations import MetricSpec, ModelSpec, ProbeSpec
from ingest import metrics as declared
from ingest.probes import relations
from ingest.probes.classes import NAMES as CLASSES
from ingest.probes.prompts import TEMPLATES
from ingest.suites._plan import specs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A suite on probes: what is measured on each of them."""

    suite: str
    probes: dict[str, tuple[ProbeSpec, list[MetricSpec]]] = field(default_factory=dict)

    @property
    def per_head(self) -> int:
        """How many scores every head gets."""
        return sum(not one.is_vector for _, found in self.probes.values() for one in found)

    @property
    def metrics(self) -> list[MetricSpec]:
        named = {one.name: one for _, found in self.probes.values() for one in found}
        return list(named.values())


def weights() -> Asked:
    """What is measured of every model."""
    scalars = (
        declared.COPYING_METRICS | declared.WEIGHT_METRICS | declared.COMPOSITION_METRICS
    ).values()
    measured = specs(scalars, "weights")
    measured += specs(declared.VECTOR_METRICS.values(), "weights", are_vectors=True)
    return Asked(suite="weights", probes={"weights": (_probe("weights", "weights"), measured)})


def patterns() -> Asked:
    """What is measured of most models."""
    everywhere = specs(declared.PATTERN_GROUP_METRICS.values(), "patterns")
    everywhere += specs(declared.OUTPUT_METRICS.values(), "patterns")
    of_rows = declared.PATTERN_METRICS.values()
    repeated = specs((one for one in of_rows if not one.needs_tokens), "patterns")
    texts = specs((one for one in of_rows if not one.needs_period), "patterns") + [
        spec
        for name in CLASSES
        for spec in specs(declared.CLASS_METRICS.values(), "patterns", parameter=name)
    ]
    found = specs(declared.RETRIEVAL_METRICS.values(), "patterns")
    return Asked(
        suite="patterns",
        probes={
            "random_repeat": (_probe("random_repeat", "random_repeat"), repeated + everywhere),
            "plain": (_probe("plain", "text"), texts + everywhere),
            "markdown": (_probe("markdown", "text"), texts + everywhere),
            "needle": (_probe("needle", "text"), texts + found + everywhere),
        },
    )


def sometimes(of: ModelSpec) -> list[Asked]:
    """What is measured of some models only."""
    shipped = relations.shipped(of.architecture or "", of.vocab_size or 0)
    names = [one.name for one in shipped.relations]
    static = [
        spec
        for name in names
        for spec in specs(declared.RELATION_METRICS.values(), "relations", parameter=name)
    ]
    dynamic = [
        spec
        for name in names
        for spec in specs(declared.DYNAMIC_METRICS.values(), "dynamic", parameter=name)
    ]
    prompted = {
        f"{shipped.name}:{template}": (
            _probe(
                f"{shipped.name}:{template}", "relation_prompts", relations=shipped.spec.relations
            ),
            dynamic,
        )
        for template in TEMPLATES
    }
    vocabulary = _probe("vocabulary", "vocabulary")
    return [
        Asked(suite="relations", probes={shipped.name: (shipped.spec, static)}),
        Asked(suite="salient", probes={"vocabulary": (vocabulary, [])}),
        Asked(suite="dynamic", probes=prompted),
    ]


def _probe(name: str, kind: str, **facts: Any) -> ProbeSpec:
    return ProbeSpec(
        name=name,
        kind=kind,
        content_hash=f"sha256:{digest(name)}",
        description=f"{name}, of which every score here is drawn from a seed",
        **facts,
    )
