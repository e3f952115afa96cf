"""Schedules for tests: what they watch, the jobs they make, and what has been measured already."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import published
import pytest

import catalog
from catalog import Catalog, publishing
from catalog.declarations import RunSpec
from catalog.jobs import Job, JobSpec, JobStore, Submitted, open_store
from catalog.jobs.schedules import Decision, Kind, ScheduleSpec
from ingest.request import IngestRequest
from ingest.schedules import ticking

HOURLY = timedelta(hours=1)
WEIGHTS = {"suites": ["weights"]}


@pytest.fixture
def to(duckdb_url: str) -> Catalog:
    return catalog.connect(duckdb_url, create=True)


@pytest.fixture
def store(to: Catalog) -> JobStore:
    return open_store(to.database)


@pytest.fixture
def now(store: JobStore) -> datetime:
    return store.now()


def submit(to: Catalog, request: IngestRequest, by: str) -> list[Submitted]:
    """A job per suite in the real store; whom a broker would tell is of no matter here."""
    store = open_store(to.database)
    return [
        store.submit(
            JobSpec(
                model=request.model,
                suite=suite,
                request={"name": request.name, "revision": request.revision},
                queue="cpu",
                key=f"{request.model} {request.name} {request.revision} {suite}",
                submitted_by=by,
            )
        )
        for suite in request.suites
    ]


def tick(store: JobStore, to: Catalog, now: datetime) -> list[ticking.Ran]:
    return ticking.tick(store, to, now, submit)


def spec(name: str = "s", kind: Kind = Kind.HUB, **more: Any) -> ScheduleSpec:
    targets: dict[Kind, dict[str, Any]] = {
        Kind.HUB: {"author": "lab", "search": None},
        Kind.MODEL: {"model": "lab/a", "revision": None},
        Kind.COLLECTION: {"collection": "lab/best-1"},
    }
    known: dict[str, Any] = {"target": targets.get(kind, {}), "every": HOURLY, "request": WEIGHTS}
    return ScheduleSpec(name=name, kind=kind, **(known | more))


def decisions(ran: Sequence[ticking.Decided]) -> dict[str, Decision]:
    return {one.item: one.decision for one in ran}


def reasons(ran: Sequence[ticking.Decided]) -> dict[str, str | None]:
    return {one.item: one.reason for one in ran}


def jobs(store: JobStore) -> list[tuple[str, Any]]:
    """Models and revisions of all jobs, oldest first."""
    return [(job.model, job.request["revision"]) for job in reversed(store.list())]


def measured(
    to: Catalog,
    model: str,
    revision: str,
    probes: Sequence[str] = ("plain",),
    params: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Published with version 1 of the metric `induction`."""
    run = RunSpec(
        model=published.model(model, revision, **facts),
        suite="patterns",
        metrics=[published.metric()],
        keyed_probes={f"{model} {revision} {name}": published.probe(name) for name in probes},
        params=dict(params or {}),
        versions={"metrics": {"induction": 1}},
        device="cpu",
        dtype="float32",
    )
    published.publish(to, publishing.begin(to.database, run), published.uniform(0.5))


def finish(store: JobStore, job: Job) -> None:
    held = store.claim(job.id, worker="w", lease_seconds=60)
    assert held is not None
    assert held.lease_token is not None
    store.succeed(job.id, held.lease_token, [1])
