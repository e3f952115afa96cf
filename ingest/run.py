"""One ingest, from a model's name to published scores.

A request is plain data, so that a queue can carry it; `ingest` is all that a task has to call.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from transformers import PreTrainedConfig

from catalog import Catalog, publishing
from catalog.declarations import RunSpec
from catalog.errors import HeadsError, InputError, ModelError, UsageError
from ingest.classify import TAXONOMIES
from ingest.probes import classes
from ingest.probes.sequences import Vocabulary
from ingest.progress import Progress, Silence
from ingest.provenance import device_name, forget_peak_memory, peak_memory, versions
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.streaming import Workroom
from ingest.suites import SUITES, Inputs, OpenModel, Plan

_SHOWN = 8
"""Undefined heads that are told one by one."""


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """What to measure on which model, and how."""

    model: str
    suites: tuple[str, ...] = ()
    """Empty: all that can be measured on this model."""
    name: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    relations: str | None = None
    probe: str | None = None
    only: bool = False
    token_classes: tuple[str, ...] = ()
    """Classes of the user over tokens' texts, each NAME=REGEX."""
    force: bool = False
    first_mlp: bool = True
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: If a suite is unknown, or `only` has nothing to be the only one.
            InputError: If a token class is badly declared.
        """
        classes.declared(self.token_classes)
        for suite in self.suites:
            if suite not in SUITES:
                raise UsageError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
        if self.only and not (self.relations or self.probe):
            raise UsageError("--only needs --relations DIR or --probe FILE to be the only one")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one suite: a new run, or the runs that had measured it all before."""

    model: str
    suite: str
    run_ids: tuple[int, ...]
    is_new: bool


def ingest(
    catalog: Catalog, request: IngestRequest, progress: Progress | None = None
) -> list[Outcome]:
    """Measure a model and publish the scores, suite by suite.

    What is published already, with the same model revision, metric versions, probes and dtype,
    is not measured again unless the request has `force`.

    Raises:
        ModelError: If the model cannot be read; the catalog is left as it was.
        InputError: If a probe or relation set cannot be used; the catalog is left as it was.
    """
    progress = progress or Silence()
    device = loading.choose_device(request.device)
    dtype = loading.choose_dtype(request.dtype, device)
    source = resolve(
        request.model,
        name=request.name,
        revision=request.revision,
        allow_pickle=request.allow_pickle,
        on_progress=progress.stage,
    )
    prepared = loading.prepare(source, on_progress=progress.stage)
    config = prepared.config
    vocabulary = Vocabulary(
        tokenizer=prepared.tokenizer,
        size=config.vocab_size,
        context=getattr(config, "max_position_embeddings", None),
        configured=_configured(config),
    )
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
        keys = _keys(plan, source.revision, dtype)
        done = publishing.published_runs(catalog.database, source.name, list(keys.values()))
        left = [name for name, key in keys.items() if request.force or key not in done]
        if left:
            todo.append((plan, {name: keys[name] for name in left}))
        else:
            runs = tuple(sorted(set(done.values())))
            outcomes.append(
                Outcome(model=source.name, suite=plan.suite, run_ids=runs, is_new=False)
            )
    model = OpenModel(prepared=prepared, device=device, dtype=dtype, progress=progress)
    outcomes += [
        _run(catalog, model, plan, keys, force=request.force, progress=progress)
        for plan, keys in todo
    ]
    return outcomes


def _configured(config: PreTrainedConfig) -> dict[str, frozenset[int]]:
    """Ids that the configuration names, by what they are for; some models end in several ways."""
    found = {}
    for name in ("bos", "eos", "pad"):
        named = getattr(config, f"{name}_token_id", None)
        ids = named if isinstance(named, list) else [named]
        found[name] = frozenset(
            token for token in ids if token is not None and 0 <= token < config.vocab_size
        )
    return found


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
            if request.suites:
                raise
            progress.note(str(error))
            continue
        if plan is not None:
            plans.append(plan)
    if not plans:
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
) -> Outcome:
    names = list(keys)
    metrics, notes = plan.metrics(names), plan.notes(names)
    room = Workroom(hashlib.sha256("".join(sorted(keys.values())).encode()).hexdigest())
    if force:
        room.clear()
    forget_peak_memory(model.device)
    plan.open(model)
    run_id = publishing.begin(
        catalog.database,
        RunSpec(
            model=model.prepared.spec,
            suite=plan.suite,
            metrics=metrics,
            keyed_probes={key: plan.probes[name] for name, key in keys.items()},
            params=plan.params(names) | {"probes": _provenance(plan, names)},
            versions=versions() | {"metrics": {m.family: m.version for m in metrics}},
            device=device_name(model.device),
            dtype=model.dtype,
        ),
    )
    try:
        measured = plan.measure(model, names, room, progress)
        if measured.undefined:
            notes = notes | {"undefined": dict(measured.undefined)}
        if measured.notes:
            notes = notes | {"happened": dict(measured.notes)}
        progress.stage(f"publishing {plan.suite}")
        publishing.publish(
            catalog.database,
            run_id,
            measured.results,
            metrics=metrics,
            taxonomies=list(TAXONOMIES.values()),
            notes=notes,
            peak_memory=peak_memory(model.device),
        )
    except BaseException as error:
        reason = f"{type(error).__name__}: {error or 'interrupted'}"
        # A database that cannot take the reason must not hide it.
        with contextlib.suppress(HeadsError, DBAPIError):
            publishing.fail(catalog.database, run_id, reason)
        raise
    room.clear()
    for text in _told(notes):
        progress.note(text)
    return Outcome(model=model.name, suite=plan.suite, run_ids=(run_id,), is_new=True)


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
    undefined = notes.get("undefined", {})
    told += [
        f"{place} has no score: {reason}" for place, reason in list(undefined.items())[:_SHOWN]
    ]
    if len(undefined) > _SHOWN:
        told.append(f"and {len(undefined) - _SHOWN} more, all in the run's notes")
    return told
