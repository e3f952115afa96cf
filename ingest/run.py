"""One ingest, from a model's name to published scores.

`ingest` is all that a task has to call.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError
from transformers import PreTrainedConfig

from catalog import Catalog, publishing
from catalog.database import Database
from catalog.declarations import MetricSpec, Results, RunSpec, TaxonomySpec
from catalog.errors import HeadsError, InputError, ModelError, UsageError
from ingest.classify import TAXONOMIES
from ingest.probes import classes
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress, Silence
from ingest.provenance import device_name, forget_peak_memory, peak_memory, versions
from ingest.request import IngestRequest
from ingest.streaming import Workroom
from ingest.suites import SUITES, Inputs, OpenModel, Plan, batches, is_out_of_memory

__all__ = ["Outcome", "Publisher", "ingest", "is_out_of_memory", "running"]

_SHOWN = 8
"""Undefined heads that are told one by one."""
_PLACE = re.compile(r"L\d+(H\d+)?")
"""A head, or all heads of a layer; what else is undefined is a metric."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one suite: a new run, or the runs that had measured it all before."""

    model: str
    suite: str
    run_ids: tuple[int, ...]
    is_new: bool


class Publisher(Protocol):
    """Makes a run's results visible, as `catalog.publishing.publish` does."""

    def __call__(
        self,
        database: Database,
        run_id: int,
        results: Results,
        /,
        *,
        metrics: Sequence[MetricSpec],
        taxonomies: Sequence[TaxonomySpec],
        notes: Mapping[str, Any],
        peak_memory: int | None,
    ) -> None: ...


def ingest(
    catalog: Catalog,
    request: IngestRequest,
    progress: Progress | None = None,
    *,
    publish: Publisher = publishing.publish,
) -> list[Outcome]:
    """Measure a model and publish the scores, suite by suite.

    What is published already, with the same model revision, metric versions, probes and dtype,
    is not measured again unless the request has `force`.

    Args:
        catalog: Where to publish.
        request: What to measure.
        progress: Told what is being done.
        publish: Makes results visible; a worker's does so only while the job is its own.

    Raises:
        ModelError: If the model cannot be read; the catalog is left as it was.
        InputError: If a probe or relation set cannot be used; the catalog is left as it was.
    """
    progress = progress or Silence()
    model = OpenModel.of(request, progress)
    source, config = model.prepared.source, model.prepared.config
    vocabulary = Vocabulary.of(config, model.prepared.tokenizer)
    if vocabulary.tokenizer is None and request.token_classes:
        raise InputError(
            f"--token-class is about texts of tokens, and {source.name} has no tokenizer; give "
            "classes token by token, in a probe's own lines"
        )
    todo = []
    outcomes = []
    for plan in _plans(config, vocabulary, request, progress):
        if not plan.probes:
            progress.note(f"{plan.suite}: this tokenizer can use nothing of what is shipped")
            continue
        keys = _keys(plan, source.revision, model.dtype)
        done = publishing.published_runs(catalog.database, source.name, list(keys.values()))
        left = [name for name, key in keys.items() if request.force or key not in done]
        if left:
            todo.append((plan, {name: keys[name] for name in left}))
        else:
            runs = tuple(sorted(set(done.values())))
            outcomes.append(
                Outcome(model=source.name, suite=plan.suite, run_ids=runs, is_new=False)
            )
    with batches(request.batch_share):
        outcomes += [
            _run(
                catalog, model, plan, keys, force=request.force, progress=progress, publish=publish
            )
            for plan, keys in todo
        ]
    return outcomes


def _plans(
    config: PreTrainedConfig, vocabulary: Vocabulary, request: IngestRequest, progress: Progress
) -> list[Plan]:
    inputs = Inputs(
        relations=Path(request.relations) if request.relations else None,
        probe=Path(request.probe) if request.probe else None,
        only=request.only,
        token_classes=classes.declared(request.token_classes),
        first_mlp=request.first_mlp,
    )
    plans = []
    for suite in request.suites or tuple(SUITES):
        try:
            plan = SUITES[suite](config, vocabulary, inputs)
        except ModelError as error:
            if request.suites and not request.if_possible:
                raise
            progress.note(str(error))
            continue
        if plan is not None:
            plans.append(plan)
    if not plans and not request.if_possible:
        raise UsageError(
            "nothing to measure: --only was given without an input for "
            f"{', '.join(request.suites or SUITES)}"
        )
    return plans


def _keys(plan: Plan, revision: str, dtype: str) -> dict[str, str]:
    """Per probe a key that is equal exactly where measuring again would give the same."""
    return {
        name: hashlib.sha256(
            json.dumps(
                {
                    "revision": revision,
                    "suite": plan.suite,
                    "probe": [name, probe.content_hash],
                    "metrics": {m.name: m.version for m in plan.metrics([name])},
                    "params": plan.params([name]),
                    "dtype": dtype,
                },
                sort_keys=True,
            ).encode()
        ).hexdigest()
        for name, probe in plan.probes.items()
    }


def _run(
    catalog: Catalog,
    model: OpenModel,
    plan: Plan,
    keys: Mapping[str, str],
    *,
    force: bool,
    progress: Progress,
    publish: Publisher,
) -> Outcome:
    names = list(keys)
    metrics, notes = plan.metrics(names), plan.notes(names)
    room = Workroom(hashlib.sha256("".join(sorted(keys.values())).encode()).hexdigest())
    if force:
        room.clear()
    forget_peak_memory(model.device)
    plan.open(model)
    spec = RunSpec(
        model=model.prepared.spec,
        suite=plan.suite,
        metrics=metrics,
        keyed_probes={key: plan.probes[name] for name, key in keys.items()},
        params=plan.params(names) | {"probes": _provenance(plan, names)},
        versions=versions() | {"metrics": {m.family: m.version for m in metrics}},
        device=device_name(model.device),
        dtype=model.dtype,
    )
    with running(catalog.database, spec) as run_id:
        measured = plan.measure(model, names, room, progress)
        if measured.undefined:
            notes = notes | {"undefined": dict(measured.undefined)}
        if measured.notes:
            notes = notes | {"happened": dict(measured.notes)}
        progress.stage(f"publishing {plan.suite}")
        publish(
            catalog.database,
            run_id,
            measured.results,
            metrics=metrics,
            taxonomies=list(TAXONOMIES.values()),
            notes=notes,
            peak_memory=peak_memory(model.device),
        )
    room.clear()
    for text in _told(notes):
        progress.note(text)
    return Outcome(model=model.name, suite=plan.suite, run_ids=(run_id,), is_new=True)


@contextlib.contextmanager
def running(database: Database, spec: RunSpec) -> Iterator[int]:
    """Begin a run; where the block ends in an error, the run has failed for that reason."""
    run_id = publishing.begin(database, spec)
    try:
        yield run_id
    except BaseException as error:
        reason = ": ".join(filter(None, (type(error).__name__, str(error))))
        # A database that cannot take the reason must not hide it.
        with contextlib.suppress(HeadsError, DBAPIError):
            publishing.fail(database, run_id, reason)
        raise


def _provenance(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """What tells a run's inputs apart from others of the same names."""
    return {
        name: {"content_hash": plan.probes[name].content_hash, "seed": plan.probes[name].seed}
        for name in names
    }


def _told(notes: Mapping[str, Any]) -> Sequence[str]:
    told = [
        f"skipped relation {relation} of {name}: {reason}"
        for name, reasons in notes.get("skipped", {}).items()
        for relation, reason in reasons.items()
    ]
    # One metric's in one layer or head stay in the notes: in a first layer, say, composition.
    undefined = {
        place: why for place, why in notes.get("undefined", {}).items() if " " not in place
    }
    metrics = [place for place in undefined if not _PLACE.fullmatch(place)]
    if len(metrics) > 1:
        reasons = {undefined[name] for name in metrics}
        why = reasons.pop() if len(reasons) == 1 else "why is in the run's notes"
        told.append(f"{', '.join(metrics)} have no score: {why}")
        undefined = {place: undefined[place] for place in undefined if place not in metrics}
    told += [
        f"{place} has no score: {reason}" for place, reason in list(undefined.items())[:_SHOWN]
    ]
    if len(undefined) > _SHOWN:
        told.append(f"and {len(undefined) - _SHOWN} more, all in the run's notes")
    return told
