"""A large catalog drawn from a seed: `python -m benchmarks.large`.

No model is measured: names, layouts, suites, metrics and probes are those of real catalogs, and the
numbers are drawn in the shapes that real ones have. They are published as those of an ingest are,
so that they lie in the database as a large catalog's would.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa
from sqlalchemy import Update, update

import catalog
from benchmarks._drawn_models import models_of
from benchmarks._drawn_numbers import results
from benchmarks._drawn_suites import Asked, patterns, sometimes, weights
from catalog import Catalog, pattern_rows, people, publishing, schema
from catalog.declarations import ModelSpec, PromptPatterns, Results, RunSpec
from catalog.orm import Model, Run
from ingest.classify import TAXONOMIES

VERSION = 1
"""Of what is drawn; part of every run's provenance, and of the name of a kept file."""
EVERY = {"relations": 3, "salient": 8, "dynamic": 40, "verdicts": 10, "failed": 25}
"""One model in so many has it."""
VERDICTS = ("described, plausible", "rightly called unclear", "described, implausible")
NOTES = ("worth a look", "polysemantic", "ablate next", "looks like induction")
PROMPT = "The quick brown fox jumps over the lazy dog because the dog is asleep"
DAYS = 540
"""From the first model to the last."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is drawn."""

    models: int = 200
    scores: int = 20_000_000
    """At least so many, unless every model has everything before that."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Equal exactly where the catalogs are."""
        return f"large-v{VERSION}-{schema.head()}-{self.models}x{self.scores}-seed{self.seed}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    usual = Size()
    arguments.add_argument("--models", type=int, default=usual.models)
    arguments.add_argument("--scores", type=int, default=usual.scores, help="At least so many.")
    arguments.add_argument("--seed", type=int, default=usual.seed)
    arguments.add_argument("--db", help="A new database; by default a file that is kept and named.")
    given = arguments.parse_args()
    size = Size(models=given.models, scores=given.scores, seed=given.seed)
    begun = time.perf_counter()
    if given.db:
        fill(catalog.connect(given.db, create=True), size)
        url = given.db
    else:
        url = f"duckdb:///{kept(size)}"
    print(f"{url} in {time.perf_counter() - begun:.0f} s")
    for row in catalog.connect(url).sql(
        "SELECT (SELECT count(*) FROM models) AS models, (SELECT count(*) FROM heads) AS heads, "
        "(SELECT count(*) FROM score) AS scores, (SELECT count(*) FROM labels) AS labels, "
        "(SELECT count(*) FROM salient_operation) AS salient_operations"
    ):
        print(", ".join(f"{count:,} {name}" for name, count in row.items()))


def kept(size: Size) -> Path:
    """The DuckDB file of this size in the cache folder; made where it is not there."""
    folder = platformdirs.user_cache_path("head-catalog") / "benchmarks"
    made = folder / size.name / "heads.duckdb"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all; stored patterns lie beside the file.
        with tempfile.TemporaryDirectory(dir=folder) as room:
            unfinished = Path(room) / size.name
            unfinished.mkdir()
            fill(catalog.connect(f"duckdb:///{unfinished / made.name}", create=True), size)
            unfinished.rename(made.parent)
    return made


def fill(into: Catalog, size: Size) -> None:
    """Publish the runs of all models.

    Args:
        into: A catalog without models.
        size: What is drawn.
    """
    if len(into.sql("SELECT 1 FROM models LIMIT 1")):
        raise SystemExit(f"{into.database.name} has models already; give a new database")
    drawn = np.random.default_rng(size.seed)
    models = list(models_of(size.models))
    # The largest has everything; the others in an order of their own, until it is enough.
    order = [0, *(int(place) for place in drawn.permutation(range(1, len(models))))]
    count = 0
    for of in models:
        count += _publish(into, of, weights(), size, drawn)
    for place, number in enumerate(order):
        of = models[number]
        for asked in (patterns(), *sometimes(of)):
            is_wanted = count < size.scores or asked.suite == "salient"
            if is_wanted and place % EVERY.get(asked.suite, 1) == 0:
                count += _publish(into, of, asked, size, drawn)
        if place % EVERY["failed"] == 1:
            run_id = publishing.begin(into.database, _spec(of, patterns(), size))
            publishing.fail(into.database, run_id, "RuntimeError: out of memory on cuda:0")
    for number in order[:2]:
        _store_patterns(into, models[number], size, drawn)
    _label(into, [models[number] for number in order[:: EVERY["verdicts"]]], drawn)
    _date(into, len(models), drawn)


def _spec(of: ModelSpec, asked: Asked, size: Size) -> RunSpec:
    return RunSpec(
        model=of,
        suite=asked.suite,
        metrics=asked.metrics,
        keyed_probes={
            f"{of.name} {asked.suite} {name}": probe for name, (probe, _) in asked.probes.items()
        },
        params={"drawn_from_seed": size.seed},
        versions={"benchmarks.large": VERSION},
        device="cpu",
        dtype="float32",
    )


def _publish(
    into: Catalog, of: ModelSpec, asked: Asked, size: Size, drawn: np.random.Generator
) -> int:
    """One run; returns how many scores it has."""
    run_id = publishing.begin(into.database, _spec(of, asked, size))
    publishing.publish(
        into.database,
        run_id,
        results(of, asked, drawn),
        metrics=asked.metrics,
        taxonomies=list(TAXONOMIES.values()) if asked.suite in {"patterns", "relations"} else (),
        notes={"drawn": "no model was measured"},
        peak_memory=2 * (of.n_params or 0),
    )
    return of.n_layers * of.n_heads * asked.per_head


def _store_patterns(into: Catalog, of: ModelSpec, size: Size, drawn: np.random.Generator) -> None:
    words = PROMPT.split()
    asked = Asked(suite=pattern_rows.SUITE)
    run_id = publishing.begin(into.database, _spec(of, asked, size))
    heads = [(layer, head) for layer in range(min(of.n_layers, 8)) for head in range(of.n_heads)]
    sizes = range(1, len(words) + 1)
    stored = {
        head: pa.array(
            np.concatenate([drawn.dirichlet(np.full(n, 0.3)) for n in sizes]).astype(np.float16)
        )
        for head in heads[:64]
    }
    prompt = PromptPatterns(
        prompt=PROMPT,
        token_ids=range(len(words)),
        tokens=[f" {word}" for word in words],
        patterns=stored,
    )
    publishing.publish(into.database, run_id, Results(patterns=[prompt]), metrics=())


def _label(into: Catalog, models: Sequence[ModelSpec], drawn: np.random.Generator) -> None:
    """What people say of some heads, in two taxonomies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*people.COLUMNS, "source"))
            for of in models:
                for layer, head in np.ndindex(of.n_layers, of.n_heads):
                    place = f"{of.name}", layer, head
                    if drawn.random() < 0.3:  # noqa: PLR2004
                        verdict = VERDICTS[drawn.integers(len(VERDICTS))]
                        writer.writerow((*place, "description_verdict", verdict, "published"))
                    if drawn.random() < 0.02:  # noqa: PLR2004
                        writer.writerow(
                            (*place, "notes", NOTES[drawn.integers(len(NOTES))], "human")
                        )
        people.import_labels(into.database, path, source="human", reviewer="drawn from a seed")


def _date(into: Catalog, models: int, drawn: np.random.Generator) -> None:
    """Models come in over the months before now; each suite takes a while."""
    now = datetime.now(UTC).replace(microsecond=0)
    ages = np.sort(drawn.uniform(0, DAYS, models))[::-1]
    with into.database.transaction() as session:
        ids = [
            key
            for (key,) in session.execute(
                Model.__table__.select().with_only_columns(Model.id).order_by(Model.id)
            )
        ]
        added = {key: now - timedelta(days=float(age)) for key, age in zip(ids, ages, strict=True)}
        for key, day in added.items():
            session.execute(update(Model).where(Model.id == key).values(added_at=day))
        for run_id, model_id in session.execute(
            Run.__table__.select().with_only_columns(Run.id, Run.model_id)
        ).all():
            seconds = float(drawn.gamma(2, 120))
            begun = added[model_id] + timedelta(minutes=int(drawn.integers(1, 600)))
            session.execute(_taking(run_id, begun, seconds))


def _taking(run_id: int, begun: datetime, seconds: float) -> Update:
    return (
        update(Run)
        .where(Run.id == run_id)
        .values(started_at=begun, finished_at=begun + timedelta(seconds=seconds), seconds=seconds)
    )


if __name__ == "__main__":
    main()
