"""From a request to jobs and messages: which there are, where they go, and that none is lost."""

import json
import platform
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hub_api
import pytest
import serving
from jobs import spec
from serving import queued, relations_of, worker_row
from sqlalchemy import update

import catalog
from catalog import Catalog, publishing
from catalog.errors import StorageError, UsageError
from catalog.jobs import JobStore, State, open_store
from catalog.settings import load_settings
from ingest.request import CaptureRequest, IngestRequest
from ingest.service.app import celery_app, waiting
from ingest.service.heal import Healer, close_all_orphans
from ingest.service.submit import submit

tiny_model, words, valkey = serving.tiny_model, serving.words, serving.valkey
embedded, served = serving.embedded, serving.served

# What is asked for


def test_one_job_per_suite_and_content(
    embedded: Catalog, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    probe = tmp_path / "own.jsonl"
    probe.write_text('{"text": "w3 w4 w5"}\n')
    every = submit(embedded, IngestRequest(model=tiny_model.name, probe=str(probe)))
    assert [one.job.suite for one in every] == [
        "relations",
        "weights",
        "salient",
        "patterns",
        "dynamic",
    ]
    assert {one.job.model for one in every} == {str(tiny_model)}
    assert all(one.job.request["if_possible"] for one in every)
    same = submit(embedded, IngestRequest(model=str(tiny_model), probe=str(probe)))
    assert [one.job.id for one in same] == [one.job.id for one in every]
    probe.write_text('{"text": "w3 w4 w6"}\n')
    for other in (
        IngestRequest(model=str(tiny_model), probe=str(probe)),
        IngestRequest(model=str(tiny_model), dtype="bfloat16"),
        IngestRequest(model=str(tiny_model), force=True),
    ):
        assert all(one.is_new for one in submit(embedded, other))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"dtype": "float8"}, "--dtype float8 is unknown; expected auto, float32"),
        ({"device": "tpu"}, "--device tpu is unknown"),
        ({"device": "cuda:x"}, "--device cuda:x is unknown"),
    ],
)
def test_what_no_worker_has_is_refused_before_it_is_queued(
    asked: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        IngestRequest(model="m", **asked)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=told):
        CaptureRequest.from_json({"model": "m", "heads": "L0", "prompts": ["x"], **asked})


def test_messages_hold_a_number_and_nothing_pickled(
    embedded: Catalog, tiny_model: Path, words: Path
) -> None:
    job = queued(embedded, relations_of(tiny_model, words))
    assert embedded.database.path is not None
    folder = embedded.database.path.parent / "heads.duckdb.queue" / "messages"
    (message,) = [json.loads(path.read_text()) for path in folder.iterdir()]
    assert message["content-type"] == "application/json"
    assert message["headers"]["argsrepr"] == f"({job.id},)"
    assert celery_app(embedded.database).conf.accept_content == ["json"]


def test_large_models_go_to_gpus_where_there_are_any(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(embedded.database)
    monkeypatch.setenv("HEADS_GPU_PARAMETERS", "10000")

    def queue_of(**options: Any) -> str:
        job = queued(embedded, relations_of(tiny_model, words, **options))
        store.cancel(job.id)
        return job.queue

    assert queue_of() == "cpu"
    store.worker_beat(worker_row("g", ["gpu"]))
    assert queue_of() == "gpu"
    assert queue_of(device="cpu") == "cpu"
    monkeypatch.setenv("HEADS_GPU_PARAMETERS", "1e9")
    assert queue_of() == "gpu"  # nobody serves the other
    store.worker_beat(worker_row("c", ["cpu"]))
    assert queue_of() == "cpu"
    assert submit(embedded, relations_of(tiny_model, words), queue="mine")[0].job.queue == "mine"


def test_a_hub_that_hangs_holds_nobody_up(
    embedded: Catalog, the_hub: hub_api.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = open_store(embedded.database), list[str]()
    monkeypatch.setattr("ingest.service.submit._HUB_ANSWERS_WITHIN", 4.0)
    for queue in ("cpu", "gpu"):
        store.worker_beat(worker_row(queue, [queue]))

    def queue_of(model: str) -> str:
        request = IngestRequest(model=model, suites=("weights",))
        (submitted,) = submit(embedded, request, tell=told.append)
        return submitted.job.queue

    started = time.monotonic()
    the_hub.delay = 30
    assert queue_of("lab/slow") == "gpu"
    the_hub.delay, the_hub.faults = 0, [(429, {"Retry-After": "60"})] * 3
    assert queue_of("lab/busy") == "gpu"
    assert time.monotonic() - started < 25
    assert any("lab/slow" in path for path in the_hub.asked)
    assert any("lab/busy" in path for path in the_hub.asked)
    assert len(told) == 2
    assert "nobody says how large lab/slow is" in told[0]


def test_jobs_are_safe_while_the_broker_is_down(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADS_BROKER_URL", "redis://:s3cret@127.0.0.1:1/0")
    told: list[str] = []
    (one,) = submit(embedded, relations_of(tiny_model, words), tell=told.append)
    assert one.job.state == State.QUEUED
    assert open_store(embedded.database).get(one.job.id).nudged_at is None
    assert "cannot be reached; the jobs are kept" in told[0]
    assert "redis://:**@127.0.0.1:1/0" in told[0]
    assert "s3cret" not in told[0]
    assert "s3cret" not in repr(load_settings())


def test_a_catalog_on_a_server_needs_a_broker(new_postgresql_url: str, tiny_model: Path) -> None:
    on_server = catalog.connect(new_postgresql_url, create=True)
    with pytest.raises(UsageError, match="HEADS_BROKER_URL"):
        submit(on_server, IngestRequest(model=str(tiny_model)))


def test_lost_messages_are_sent_again(
    served: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.service.heal._LOST_AFTER", 0.0)
    store, app = open_store(served.database), celery_app(served.database)
    app.control.purge()
    job = queued(served, relations_of(tiny_model, words))
    healer = Healer(store, app, lease=30)
    for _ in range(3):
        healer.heal()
    assert waiting(app, ["cpu", "gpu"]) == {"cpu": 1, "gpu": 0}
    app.control.purge()
    for _ in range(3):
        healer.heal()
    assert waiting(app, ["cpu"]) == {"cpu": 1}
    store.cancel(job.id)
    app.control.purge()


# What heals


def test_runs_of_dead_workers_elsewhere_are_closed(
    embedded: Catalog, tiny_model: Path, words: Path
) -> None:
    store = open_store(embedded.database)
    job = queued(embedded, relations_of(tiny_model, words))
    store.claim(job.id, worker="w@far", host="far", pid=77, device="cpu", lease_seconds=30)
    mine, others = begun(embedded, "far", 77), begun(embedded, "far", 78)
    assert close_all_orphans(embedded.database, store) == []
    store.reap(datetime.now(UTC) + timedelta(hours=1))
    assert close_all_orphans(embedded.database, store) == [mine]
    assert publishing.status(embedded.database, mine)[0] == "failed"
    assert "worker w@far on far ended" in str(publishing.status(embedded.database, mine)[1])
    assert publishing.status(embedded.database, others)[0] == "running"


def test_nobody_who_heals_waits_for_a_frozen_writer(
    new_postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its turn ends when its job is reaped, by who would have waited."""
    on_server = catalog.connect(new_postgresql_url, create=True)
    monkeypatch.setattr("ingest.service.heal._TURN", 0.1)
    here, far = begun(on_server, platform.node(), 2**22 + 1), begun(on_server, "far", 77)
    store = open_store(on_server.database)
    job = store.submit(spec()).job
    store.claim(job.id, worker="w@far", host="far", pid=77, device="cpu", lease_seconds=0)
    store.reap()
    with on_server.database.transaction():
        again = catalog.connect(new_postgresql_url)
        assert close_all_orphans(on_server.database, store) == []
        assert "cannot be closed now" in caplog.text
        assert {row["status"] for row in again.sql("SELECT status FROM runs")} == {"running"}
    assert close_all_orphans(on_server.database, store) == [far]
    assert publishing.status(on_server.database, here)[0] == "failed"


def begun(one: Catalog, host: str, pid: int) -> int:
    """A run that a process on another machine has begun."""
    import published

    from catalog.orm import Run

    run_id = published.begin(one)
    with one.database.transaction() as session:
        session.execute(update(Run).where(Run.id == run_id).values(host=host, pid=pid))
    return run_id


def test_after_an_outage_workers_may_renew_their_leases(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(embedded.database)
    job = queued(embedded, relations_of(tiny_model, words))
    claimed = store.claim(job.id, worker="w", lease_seconds=0.01)
    assert claimed is not None
    assert claimed.lease_token is not None
    healer = Healer(store, celery_app(embedded.database), lease=600)
    with monkeypatch.context() as away:
        away.setattr(JobStore, "to_nudge", _away)
        away.setattr(JobStore, "reap", _away)
        with pytest.raises(StorageError):
            healer.heal()
    healer.heal()
    assert not store.beat(job.id, claimed.lease_token, 30).cancel_requested


def _away(*_: Any, **__: Any) -> Any:
    raise StorageError("away")
