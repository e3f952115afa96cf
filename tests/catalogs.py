"""Small catalogs for the tests of charts and pages."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import catalog
from catalog import publishing
from catalog.declarations import Measurement, MetricSpec, ModelSpec, ProbeSpec, Results, RunSpec
from catalog.people import add_layout, import_labels

VERDICTS = (
    "described, plausible",
    "rightly called unclear",
    "described, implausible",
    "pattern missed",
)
PUBLISHED_VERDICTS = ((7, 22, 4, 0), (12, 16, 4, 1), (3, 27, 3, 1), (19, 9, 6, 0))
"""Heads of GPT-2 xl per bin of 12 layers, by `VERDICTS`: the published figure's counts."""

HOSTILE = "<script>alert(1)</script>"

Label = tuple[str, int, int, str, str]


def make(
    folder: Path, layouts: dict[str, tuple[int, int]], labels: Iterable[Label] = ()
) -> catalog.Catalog:
    """A DuckDB catalog in a folder, filled."""
    made = catalog.connect(f"duckdb:///{folder / 'heads.duckdb'}", create=True)
    fill(made, folder, layouts, labels)
    return made


def fill(
    made: catalog.Catalog,
    folder: Path,
    layouts: dict[str, tuple[int, int]],
    labels: Iterable[Label] = (),
) -> None:
    """Add models by their layout, and labels by people.

    Args:
        made: A catalog.
        folder: For the CSV file.
        layouts: (layers, heads) by name of the model.
        labels: model, layer, head, taxonomy, label.
    """
    for name, (n_layers, n_heads) in layouts.items():
        spec = ModelSpec(name=name, revision=None, n_layers=n_layers, n_heads=n_heads)
        add_layout(made.database, spec)
    add_labels(made, folder, labels)


def add_labels(made: catalog.Catalog, folder: Path, labels: Iterable[Label]) -> None:
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "layer", "head", "taxonomy", "label"))
        writer.writerows(labels)
    import_labels(made.database, path, source="human", reviewer="a reader")


def add_token_masses(
    made: catalog.Catalog,
    model: str,
    masses: Mapping[str, Sequence[Sequence[float | None]]],
    *,
    probe: str = "markdown",
) -> None:
    """Publish attention to classes of tokens: by class, layer and head."""
    values = next(iter(masses.values()))
    metrics = [
        MetricSpec(
            family="token_mass",
            parameter=name,
            version=1,
            suite="patterns",
            unit="attention probability",
            lower=0.0,
            upper=1.0,
            description="d",
            source="s",
        )
        for name in masses
    ]
    probes = {
        f"{model}/{probe}": ProbeSpec(name=probe, kind="text", content_hash="h", description="d")
    }
    run = RunSpec(
        model=ModelSpec(name=model, revision="r", n_layers=len(values), n_heads=len(values[0])),
        suite="patterns",
        metrics=metrics,
        keyed_probes=probes,
        params={},
        versions={},
        device="cpu",
        dtype="float32",
    )
    run_id = publishing.begin(made.database, run)
    measured = [
        Measurement(metric=one.name, probe=probe, values=masses[str(one.parameter)])
        for one in metrics
    ]
    publishing.publish(made.database, run_id, Results(measurements=measured), metrics=metrics)


def published_labels(model: str) -> list[Label]:
    """Labels of `description_verdict` with the published counts; 48 layers of 25 heads."""
    found = []
    for start, counts in zip(range(0, 48, 12), PUBLISHED_VERDICTS, strict=True):
        verdicts = [v for v, n in zip(VERDICTS, counts, strict=True) for _ in range(n)]
        for place, verdict in enumerate(verdicts):
            layer, head = start + place % 12, 7 * place % 25
            found.append((model, layer, head, "description_verdict", verdict))
    return found
