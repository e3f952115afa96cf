"""Small runs, published the way ingests publish them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from catalog import Catalog, publishing
from catalog.declarations import (
    COMPOSITIONS,
    SALIENT,
    Measurement,
    MetricSpec,
    ModelSpec,
    ProbeSpec,
    RelationSpec,
    Results,
    RunSpec,
    TaxonomySpec,
)

N_LAYERS, N_HEADS = 3, 4
Values = Sequence[Sequence[float | None]]


def model(name: str = "m", revision: str | None = "r1", **facts: Any) -> ModelSpec:
    known: dict[str, Any] = {
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "n_kv_heads": 2,
        "source": "folder:/m",
        "architecture": "llama",
    }
    return ModelSpec(name=name, revision=revision, **(known | facts))


def metric(
    family: str = "induction",
    parameter: str | None = None,
    suite: str = "patterns",
    *,
    is_vector: bool = False,
) -> MetricSpec:
    return MetricSpec(
        family=family,
        parameter=parameter,
        version=1,
        suite=suite,
        unit="attention probability",
        lower=0.0,
        upper=1.0,
        description="d",
        source="s",
        is_vector=is_vector,
    )


def probe(name: str = "plain", content: str = "h", category: str | None = None) -> ProbeSpec:
    relation = RelationSpec(name="copying", category=category, k=1, n_pairs=40)
    return ProbeSpec(
        name=name,
        kind="text",
        content_hash=content,
        description="d",
        relations=(relation,) if category else (),
    )


def begin(
    catalog: Catalog,
    key: str = "k1",
    *,
    of: ModelSpec | None = None,
    metrics: Sequence[MetricSpec] = (metric(),),
    probes: Sequence[ProbeSpec] = (probe(),),
) -> int:
    return publishing.begin(
        catalog.database,
        RunSpec(
            model=of or model(),
            suite=metrics[0].suite,
            metrics=metrics,
            keyed_probes={f"{key}/{one.name}": one for one in probes},
            params={"a": 1},
            versions={"torch": "2"},
            device="cpu",
            dtype="float32",
        ),
    )


def uniform(value: float | None) -> Values:
    return [[value] * N_HEADS for _ in range(N_LAYERS)]


def publish(
    catalog: Catalog,
    run_id: int,
    values: Values,
    *,
    metrics: Sequence[MetricSpec] = (metric(),),
    probes: Sequence[ProbeSpec] = (probe(),),
    taxonomies: Sequence[TaxonomySpec] = (),
) -> None:
    publishing.publish(
        catalog.database,
        run_id,
        Results(
            measurements=[
                Measurement(metric=one.name, probe=on.name, values=values)
                for one in metrics
                for on in probes
            ]
        ),
        metrics=metrics,
        taxonomies=taxonomies,
    )


def publish_results(
    catalog: Catalog, run_id: int, results: Results, metrics: Sequence[MetricSpec] = ()
) -> None:
    publishing.publish(catalog.database, run_id, results, metrics=metrics)


def salient(**facts: Any) -> dict[str, Any]:
    """A row of SALIENT: what L0H0 promotes most for the token that it amplifies most."""
    known: dict[str, Any] = {
        "layer": 0,
        "head": 0,
        "token_rank": 0,
        "token_id": 10,
        "token": " France",
        "norm": 2.5,
        "direction": "promoted",
        "output_rank": 0,
        "output_id": 20,
        "output": " Paris",
        "logit": 7.25,
    }
    return known | facts


def salients(*rows: dict[str, Any]) -> Results:
    return Results(salient=pa.Table.from_pylist(list(rows), SALIENT))


def composition(**facts: Any) -> dict[str, Any]:
    """A row of COMPOSITIONS: what L1H0 reads by its query of L0H0."""
    known = {"kind": "query", "layer": 1, "head": 0, "from_layer": 0, "from_head": 0, "value": 0.5}
    return known | facts


def compositions(*rows: dict[str, Any]) -> Results:
    return Results(compositions=pa.Table.from_pylist(list(rows), COMPOSITIONS))
