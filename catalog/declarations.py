"""What a caller declares to the catalog: plain values, no torch and no tables behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One revision of one model; sizes as in its configuration, None where unknown."""

    name: str
    revision: str | None
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    architecture: str | None = None
    d_model: int | None = None
    d_head: int | None = None
    vocab_size: int | None = None
    n_params: int | None = None
    base_model: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    source: str | None = None
    content_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """A metric as users see it; `name` is `family`, or `family[parameter]`."""

    family: str
    version: int
    suite: str
    unit: str
    lower: float | None
    upper: float | None
    description: str
    source: str
    parameter: str | None = None
    is_vector: bool = False
    """A list of numbers for every head; a metric that becomes one needs another name."""

    @property
    def name(self) -> str:
        return self.family if self.parameter is None else f"{self.family}[{self.parameter}]"


@dataclass(frozen=True, kw_only=True)
class RelationSpec:
    """A relation of a probe; a hit is a target among the `k` largest logits."""

    name: str
    category: str | None
    k: int
    n_pairs: int


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """An input of a suite; `content_hash` tells two probes of one name apart."""

    name: str
    kind: str
    content_hash: str
    description: str
    version: int = 1
    seed: int | None = None
    relations: tuple[RelationSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run to be: what is measured on what, and with which versions of everything."""

    model: ModelSpec
    suite: str
    metrics: Sequence[MetricSpec]
    keyed_probes: Mapping[str, ProbeSpec]
    """Probes by their key: equal keys mean that measuring again would give the same."""
    params: Mapping[str, Any]
    versions: Mapping[str, Any]
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric on one probe for every head: `values[layer][head]`, None where undefined."""

    metric: str
    probe: str
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class VectorMeasurement:
    """A metric that is a list of numbers for every head: `values[layer][head]`, None: undefined."""

    metric: str
    probe: str
    values: Sequence[Sequence[Sequence[float] | None]]


COMPOSITIONS = pa.schema(
    [
        ("kind", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("from_layer", pa.int32()),
        ("from_head", pa.int32()),
        ("value", pa.float64()),
    ]
)
"""How much a head reads, by its `query`, `key` or `value`, of what an earlier head writes."""

SALIENT = pa.schema(
    [
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("token_rank", pa.int32()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("norm", pa.float64()),
        ("direction", pa.string()),
        ("output_rank", pa.int32()),
        ("output_id", pa.int32()),
        ("output", pa.string()),
        ("logit", pa.float64()),
    ]
)
"""Tokens that a head amplifies most (rank 0 the most), each with the outputs that it is mapped to:
`direction` is `promoted` (the largest logits) or `suppressed` (the smallest)."""


@dataclass(frozen=True, kw_only=True)
class PromptPatterns:
    """The whole patterns of some heads on one prompt."""

    prompt: str
    """What people call it: the text itself, or its name."""
    token_ids: Sequence[int]
    tokens: Sequence[str]
    """What the tokens look like, as many as ids."""
    patterns: Mapping[tuple[int, int], pa.Array]
    """By layer and head: of each query, in order, the attention to itself and the keys before it
    (n (n + 1) / 2 numbers for n tokens), rounded to the nearest float16."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a run has measured; tables have the schemas above."""

    measurements: Sequence[Measurement] = ()
    vectors: Sequence[VectorMeasurement] = ()
    compositions: pa.Table | None = None
    salient: pa.Table | None = None
    patterns: Sequence[PromptPatterns] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`label` where `metric` on `probe` reaches `threshold`.

    With `label` None, `metric` names a family over relations, and the label is the category that
    the relation has in its set, where it has one. With `probe` None every probe counts.
    """

    metric: str
    threshold: float
    label: str | None = None
    probe: str | None = None

    def __str__(self) -> str:
        where = f" on {self.probe}" if self.probe else ""
        return f"{self.metric} >= {self.threshold:g}{where}"


@dataclass(frozen=True, kw_only=True)
class TaxonomySpec:
    """A taxonomy whose labels follow from scores by rules."""

    name: str
    version: int
    description: str
    rules: Sequence[Rule] = field(default_factory=tuple)
