"""The life of a run: begun, then published as a whole or failed with its reason.

Nothing that a reader sees changes before `publish` commits. The replaced run's scores move to
`score_history` in that same transaction, and its other results are deleted in it, so readers see
one run or the other, never a mixture.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import psutil
import pyarrow as pa
from sqlalchemy import Select, and_, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from catalog import bulk, pattern_rows, texts
from catalog.database import Database
from catalog.declarations import (
    MetricSpec,
    ModelSpec,
    ProbeSpec,
    Results,
    Rule,
    RunSpec,
    TaxonomySpec,
)
from catalog.errors import HeadsError, ModelError, UsageError
from catalog.orm import (
    Base,
    Composition,
    Head,
    HeadVector,
    Measured,
    Metric,
    Model,
    Probe,
    Relation,
    Run,
    RunProbe,
    SalientOperation,
    Score,
    ScoreHistory,
    table,
)
from catalog.rows import (
    Keys,
    composition_rows,
    measured_rows,
    salient_rows,
    score_rows,
    vector_rows,
)
from catalog.rules import apply_rules, declare

CLASSIFY = "classify"
"""The suite of runs that apply rules and measure nothing."""

PUBLISHING_PATIENCE = 600.0
"""Seconds to wait at least for a DuckDB file when scores are to be published."""

_CREATED_TIME_SLACK = 60.0
"""Seconds: a process's start is computed from the clock, which may have been set since."""


def published_runs(database: Database, model: str, keys: Sequence[str]) -> dict[str, int]:
    """Which of these measurements readers have already: key -> run id."""
    with database.read_session() as session:
        found = session.execute(
            select(RunProbe.key, RunProbe.run_id)
            .join(Run, Run.id == RunProbe.run_id)
            .join(Model, Model.id == Run.model_id)
            .where(RunProbe.key.in_(keys), RunProbe.is_published, Model.name == model)
        )
        return {key: run_id for key, run_id in found}  # noqa: C416 - rows are no pairs to a type checker


def begin(database: Database, spec: RunSpec) -> int:
    """Write the run's row, so that even a killed run leaves its trace.

    Returns:
        The run's id.

    Raises:
        ModelError: If the model's name stands for something else in this catalog.
    """
    with database.transaction() as session:
        require_name(spec.model.name)
        model = _model_row(session, spec.model)
        _register_metrics(session, spec.metrics)
        process = psutil.Process()
        run = Run(
            model_id=model.id,
            suite=spec.suite,
            status="running",
            params=dict(spec.params),
            device=spec.device,
            dtype=spec.dtype,
            versions=dict(spec.versions),
            started_at=datetime.now(UTC),
            host=platform.node(),
            pid=process.pid,
            process_started=process.create_time(),
        )
        session.add(run)
        session.flush()
        for key, probe in spec.keyed_probes.items():
            probe_id = _probe_row(session, probe).id
            session.add(RunProbe(run_id=run.id, probe_id=probe_id, key=key, is_published=False))
        return run.id


def publish(
    database: Database,
    run_id: int,
    results: Results,
    *,
    metrics: Sequence[MetricSpec],
    taxonomies: Sequence[TaxonomySpec] = (),
    notes: Mapping[str, Any] | None = None,
    peak_memory: int | None = None,
    fence: Callable[[], object] | None = None,
) -> None:
    """Make a run's results, and the labels that follow from its scores, visible together.

    They take the place of those of the run before, of the same model name, suite and probe. Of
    that run the scores stay in the history; its vectors, compositions and salient operations go.
    Stored patterns take the place of those of the same head and prompt only.

    Args:
        database: Where the run was begun.
        run_id: A run with status `running`.
        results: Every metric on every probe of the run; compositions and salient operations only
            of a run on one probe.
        metrics: The declarations of what was measured, which readers see from now on.
        taxonomies: Those whose rules are applied to the model's published scores afterwards.
        notes: What was skipped and why.
        peak_memory: Bytes.
        fence: Called when all is written and nothing is visible yet; what it raises undoes all.

    Raises:
        ValueError: If the run is not running, or a result is not what it is declared to be: a
            value NaN or infinite, a shape wrong, a head not the model's. Nothing changes then.
    """
    # What took hours to measure is worth more patience than a question is.
    patience = max(database.lock_timeout, PUBLISHING_PATIENCE) if database.is_duckdb else None
    with database.transaction(patience) as session:
        run = session.get_one(Run, run_id)
        model = session.get_one(Model, run.model_id)
        if run.status != "running":
            raise ValueError(f"run {run_id} cannot be published: it has {run.status} already")
        _update_metrics(session, metrics)
        keys = _keys(session, run, model, metrics)
        rows = _rows(results, keys)
        _withdraw_replaced(session, run, model)
        session.flush()
        connection = session.connection()
        for entity, found in rows.items():
            texts_in = [name for name in ("token", "output") if name in found.column_names]
            bulk.insert(connection, table(entity), texts.with_ids(connection, found, texts_in))
        has_removed = bool(results.patterns) and pattern_rows.store(
            session, database, keys, results.patterns
        )
        _make_current(session, model)
        finished = datetime.now(UTC)
        run.status, run.finished_at = "succeeded", finished
        run.seconds = (finished - run.started_at).total_seconds()
        run.notes, run.peak_memory = (dict(notes) if notes else None), peak_memory
        session.execute(update(RunProbe).where(RunProbe.run_id == run_id).values(is_published=True))
        session.flush()
        for taxonomy in taxonomies:
            declare(session, taxonomy)
            apply_rules(session, model.name, _in_force(session, model.name, taxonomy))
        if fence is not None:
            session.flush()
            fence()
    if has_removed:
        # What is published stays so: the next write reclaims what this one could not.
        with contextlib.suppress(HeadsError, DBAPIError):
            pattern_rows.reclaim(database)


def fail(database: Database, run_id: int, reason: str, *, patience: float | None = None) -> None:
    """Close a run that came to nothing; readers go on seeing the previous one.

    Args:
        database: The catalog.
        run_id: Of the run.
        reason: What readers are told of it.
        patience: As of `Database.transaction`.
    """
    with database.transaction(patience) as session:
        run = session.get_one(Run, run_id)
        if run.status == "running":
            _close(run, reason)
        if run.suite == pattern_rows.SUITE:
            pattern_rows.sweep(session, database)


def classify(database: Database, model: str, taxonomies: Sequence[TaxonomySpec]) -> dict[str, int]:
    """Apply rules to a model's published scores, as a run of its own.

    They stay in force for this model: later runs are labelled by them too, until the next call.

    Returns:
        How many labels each taxonomy gave.
    """
    with database.transaction() as session:
        row = session.scalars(select(Model).where(Model.name == model, Model.is_current)).one()
        process, now = psutil.Process(), datetime.now(UTC)
        run = Run(
            model_id=row.id,
            suite=CLASSIFY,
            status="succeeded",
            params={spec.name: [asdict(rule) for rule in spec.rules] for spec in taxonomies},
            versions={spec.name: spec.version for spec in taxonomies},
            started_at=now,
            host=platform.node(),
            pid=process.pid,
            process_started=process.create_time(),
        )
        session.add(run)
        session.flush()
        counts = {spec.name: apply_rules(session, model, spec) for spec in taxonomies}
        run.finished_at = datetime.now(UTC)
        run.seconds = (run.finished_at - now).total_seconds()
        return counts


def status(database: Database, run_id: int) -> tuple[str, str | None]:
    """A run's status, and the reason where it failed."""
    with database.read_session() as session:
        run = session.get_one(Run, run_id)
        return run.status, run.error


def running(database: Database) -> list[tuple[int, str, int, datetime]]:
    """Runs under way on any host: id, host, process and when they began."""
    with database.read_session() as session:
        found = session.execute(
            select(Run.id, Run.host, Run.pid, Run.started_at).where(Run.status == "running")
        )
        return [(run_id, host, pid, started) for run_id, host, pid, started in found]


def reap(database: Database) -> list[int]:
    """Fail the runs whose process on this machine is gone; returns their ids."""
    with database.read_session() as session:
        dead = [run.id for run in session.scalars(_running_here()) if not _is_alive(run)]
    for run_id in dead:
        with database.transaction(patience=0) as session:
            run = session.get_one(Run, run_id)
            if run.status == "running":
                _close(run, f"process {run.pid} on {run.host} ended before the run (killed?)")
    return dead


def _in_force(session: Session, model: str, declared: TaxonomySpec) -> TaxonomySpec:
    """A taxonomy with the rules that a model was last classified by, the declared ones if never."""
    classified = session.scalars(
        select(Run.params)
        .join(Model, Model.id == Run.model_id)
        .where(Run.suite == CLASSIFY, Run.status == "succeeded", Model.name == model)
        .order_by(Run.id.desc())
    )
    for params in classified:
        if declared.name in params:
            rules = tuple(Rule(**rule) for rule in params[declared.name])
            return replace(declared, rules=rules)
    return declared


def _running_here() -> Select[Run]:
    return select(Run).where(Run.status == "running", Run.host == platform.node())


def _is_alive(run: Run) -> bool:
    try:
        process = psutil.Process(run.pid)
        # A killed process whose parent has not looked yet still has its number.
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - run.process_started) < _CREATED_TIME_SLACK
    except psutil.Error:
        return False


def _close(run: Run, reason: str) -> None:
    run.status, run.error = "failed", reason
    run.finished_at = datetime.now(UTC)
    run.seconds = (run.finished_at - run.started_at).total_seconds()


def require_name(name: str) -> None:
    """See that a model's name can be typed, shown and stored.

    Raises:
        UsageError: If it is empty or has characters that cannot be printed.
    """
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} is no name for a model: expected printable characters")


def _model_row(session: Session, spec: ModelSpec) -> Model:
    known = session.scalars(select(Model).where(Model.name == spec.name)).all()
    for model in known:
        if model.revision == spec.revision:
            return model
    for model in known:
        if (model.n_layers, model.n_heads) != (spec.n_layers, spec.n_heads):
            raise ModelError(
                f"the catalog knows {spec.name} with {model.n_layers} layers of {model.n_heads} "
                f"heads, and this one has {spec.n_layers} of {spec.n_heads}; "
                "give it another name with --name"
            )
        if model.source is not None and model.source != spec.source:
            raise ModelError(
                f"the catalog has {spec.name} from {model.source}, and this one, from "
                f"{spec.source}, has other contents; give it another name with --name"
            )
    model = Model(**vars(spec), is_current=False, added_at=datetime.now(UTC))
    session.add(model)
    session.flush()
    return model


def _update_metrics(session: Session, specs: Sequence[MetricSpec]) -> None:
    """Let the declared facts stand beside the scores that they describe."""
    known = {metric.name: metric for metric in session.scalars(select(Metric))}
    for spec in specs:
        for field, value in _facts(spec).items():
            setattr(known[spec.name], field, value)


def _facts(spec: MetricSpec) -> dict[str, Any]:
    """A metric's columns; whether it is a list shows in which table it has rows."""
    return {field: value for field, value in vars(spec).items() if field != "is_vector"}


def _register_metrics(session: Session, specs: Sequence[MetricSpec]) -> None:
    """Give new metrics a row, and on PostgreSQL a partition of `score` where they are numbers.

    Nobody sees either before there are scores.
    """
    known = set(session.scalars(select(Metric.name)))
    for spec in specs:
        if spec.name in known:
            continue
        metric = Metric(**_facts(spec), name=spec.name)
        session.add(metric)
        session.flush()
        if session.get_bind().dialect.name == "postgresql" and not spec.is_vector:
            add_partition(session, metric.id)


def add_partition(session: Session, metric_id: int) -> None:
    """Make room in PostgreSQL's `score` for a metric."""
    session.execute(
        text(
            f"CREATE TABLE score_metric_{metric_id} PARTITION OF score FOR VALUES IN ({metric_id})"
        )
    )


def _probe_row(session: Session, spec: ProbeSpec) -> Probe:
    probe = session.scalars(
        select(Probe).where(Probe.name == spec.name, Probe.content_hash == spec.content_hash)
    ).one_or_none()
    if probe is None:
        facts = {name: value for name, value in vars(spec).items() if name != "relations"}
        probe = Probe(**facts)
        session.add(probe)
        session.flush()
        session.add_all(
            Relation(probe_id=probe.id, **vars(relation)) for relation in spec.relations
        )
    return probe


def head_rows(model: ModelSpec | Model, model_id: int) -> list[dict[str, int | None]]:
    """Rows of `head` for a model's layout; kv_head is None where the grouping is unknown."""
    group = model.n_heads // model.n_kv_heads if model.n_kv_heads else None
    return [
        {
            "model_id": model_id,
            "layer": layer,
            "head": head,
            "kv_head": head // group if group else None,
        }
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
    ]


def _head_ids(session: Session, model: Model) -> pa.Array:
    chosen = select(Head.id).where(Head.model_id == model.id).order_by(Head.layer, Head.head)
    if session.execute(chosen.limit(1)).first() is None:
        session.execute(insert(Head), head_rows(model, model.id))
    return pa.array(session.scalars(chosen), pa.int32())


def _withdraw_replaced(session: Session, run: Run, model: Model) -> None:
    """Take from readers what this run's model, suite and probe names had published.

    Of the model in any revision: readers know it by its name, and see for each suite and probe
    the newest run. Scores go to the history; vectors, compositions and salient operations, which
    are many times larger, go for good.
    """
    names = select(Probe.name).join(RunProbe).where(RunProbe.run_id == run.id)
    replaced = session.execute(
        select(RunProbe.run_id, RunProbe.probe_id)
        .join(Run, Run.id == RunProbe.run_id)
        .join(Model, Model.id == Run.model_id)
        .join(Probe, Probe.id == RunProbe.probe_id)
        .where(
            Model.name == model.name,
            Run.suite == run.suite,
            RunProbe.is_published,
            Probe.name.in_(names),
        )
    ).all()
    of_suite = select(Metric.id).where(Metric.suite == run.suite)
    of_model = select(Head.id).join(Model).where(Model.name == model.name)
    for old_run, probe in replaced:
        # Metric and head narrow the rows to one partition range: neither database has an index
        # on run_id, which would cost every write for the sake of this one query.
        scores, vectors = (
            and_(
                entity.metric_id.in_(of_suite),
                entity.head_id.in_(of_model),
                entity.run_id == old_run,
                entity.probe_id == probe,
            )
            for entity in (Score, HeadVector)
        )
        columns = [column.name for column in table(Score).columns]
        session.execute(
            insert(ScoreHistory).from_select(
                columns, select(*(table(Score).c[name] for name in columns)).where(scores)
            )
        )
        session.execute(delete(Score).where(scores))
        session.execute(
            delete(Measured).where(Measured.run_id == old_run, Measured.probe_id == probe)
        )
        session.execute(delete(HeadVector).where(vectors))
        for entity in (Composition, SalientOperation):
            session.execute(
                delete(entity).where(entity.head_id.in_(of_model), entity.run_id == old_run)
            )
        session.execute(
            update(RunProbe)
            .where(RunProbe.run_id == old_run, RunProbe.probe_id == probe)
            .values(is_published=False)
        )


def _keys(session: Session, run: Run, model: Model, specs: Sequence[MetricSpec]) -> Keys:
    metrics = {name: key for name, key in session.execute(select(Metric.name, Metric.id))}  # noqa: C416
    of_run = select(Probe.name, Probe.id).join(RunProbe).where(RunProbe.run_id == run.id)
    return Keys(
        run_id=run.id,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        heads=_head_ids(session, model),
        scores={spec.name: metrics[spec.name] for spec in specs if not spec.is_vector},
        vectors={spec.name: metrics[spec.name] for spec in specs if spec.is_vector},
        probes={name: key for name, key in session.execute(of_run)},  # noqa: C416
    )


def _rows(results: Results, keys: Keys) -> dict[type[Base], pa.Table]:
    scores = score_rows(results.measurements, keys)
    found: dict[type[Base], pa.Table] = {
        Score: scores,
        Measured: measured_rows(scores),
        HeadVector: vector_rows(results.vectors, keys),
    }
    if results.compositions is not None:
        found[Composition] = composition_rows(results.compositions, keys)
    if results.salient is not None:
        found[SalientOperation] = salient_rows(results.salient, keys)
    # Rows of details name no probe: replacing one of several could not tell which of them goes.
    if {Composition, SalientOperation} & found.keys() and len(keys.probes) != 1:
        raise ValueError(
            "compositions and salient operations need a run on one probe, "
            f"and this one has {', '.join(keys.probes)}"
        )
    return found


def _make_current(session: Session, model: Model) -> None:
    """Let `models` show this revision in place of the one before."""
    session.execute(
        update(Model)
        .where(Model.name == model.name, Model.id != model.id, Model.is_current)
        .values(is_current=False)
    )
    model.is_current = True
