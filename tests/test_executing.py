"""One job in a worker's child: how it ends, what it needs, and what is refused."""

import json
import os
import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import serving
import tiny
from serving import PATIENCE, done, here, queued, relations_of, scores, statuses, worker_row

import catalog
from catalog import Catalog, publishing
from catalog.database import Database
from catalog.errors import StorageError, UsageError
from catalog.jobs import State, open_store
from catalog.settings import Settings, load_settings
from ingest import run as ingest_run
from ingest.request import IngestRequest
from ingest.run import ingest
from ingest.service import execute, memory
from ingest.service.app import celery_app, waiting
from ingest.service.guard import admit
from ingest.service.submit import submit

tiny_model, words, embedded = serving.tiny_model, serving.words, serving.embedded

# What a job comes to


def test_what_a_model_lacks_is_noted_and_no_failure(embedded: Catalog, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "without-words", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    store = open_store(embedded.database)
    by_suite = {one.job.suite: one.job for one in submit(embedded, IngestRequest(model=str(model)))}
    execute.run(here(embedded), by_suite["dynamic"].id)
    noted = store.get(by_suite["dynamic"].id)
    assert (noted.state, noted.run_ids) == (State.SUCCEEDED, [])
    assert "tokenizer" in str(noted.stage)
    named = done(embedded, IngestRequest(model=str(model), suites=("dynamic",)))
    assert named.state == State.FAILED
    assert "tokenizer" in str(named.error)


def test_a_cancelled_job_stops_and_publishes_nothing(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(embedded.database)
    monkeypatch.setattr(execute, "_TICK", 0.01)
    monkeypatch.setattr(execute, "_NEWS", 0.0)

    def cancelling(_catalog: Catalog, _request: IngestRequest, progress: Any, **_: Any) -> Any:
        (job,) = store.list()
        store.cancel(job.id)
        for step in range(1000):
            progress.stage(f"step {step}")
            time.sleep(0.05)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(ingest_run, "ingest", cancelling)
    job = done(embedded, relations_of(tiny_model, words))
    assert (job.state, job.error) == (State.CANCELLED, None)


def test_a_superseded_worker_publishes_nothing(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(embedded.database)
    publish = publishing.publish

    def late(database: Database, run_id: int, *rest: Any, **facts: Any) -> None:
        """The worker is paused here for longer than its lease."""
        store.reap(datetime.now(UTC) + timedelta(hours=1))
        publish(database, run_id, *rest, **facts)

    monkeypatch.setattr(publishing, "publish", late)
    job = done(embedded, relations_of(tiny_model, words))
    assert job.state == State.QUEUED
    assert scores(embedded) == []
    monkeypatch.undo()
    execute.run(here(embedded), job.id)
    assert store.get(job.id).state == State.SUCCEEDED
    assert statuses(embedded) == ["failed", "succeeded"]


def test_results_wait_for_a_database_that_is_away(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, times = publishing.publish, []

    def after_a_while(*given: Any, **facts: Any) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise StorageError("the disk is full")
        publish(*given, **facts)
        if len(times) == 2:
            raise StorageError("the connection was lost before the answer came")

    monkeypatch.setattr(publishing, "publish", after_a_while)
    job = done(embedded, relations_of(tiny_model, words))
    assert (job.state, job.run_ids, len(times)) == (State.SUCCEEDED, [1], 2)
    assert statuses(embedded) == ["succeeded"]


def test_too_little_memory_is_tried_with_less_once(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def too_much(_catalog: Catalog, request: IngestRequest, *_: Any, **__: Any) -> Any:
        shares.append(request.batch_share)
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(ingest_run, "ingest", too_much)
    job = done(embedded, relations_of(tiny_model, words))
    assert (job.state, job.attempt) == (State.QUEUED, 1)
    execute.run(here(embedded), job.id)
    failed = open_store(embedded.database).get(job.id)
    assert failed.state == State.FAILED
    assert "out of memory (RuntimeError), with smaller batches, too" in str(failed.error)
    assert shares == [1.0, 0.25]


def test_smaller_batches_change_no_score(tiny_model: Path, tmp_path: Path) -> None:
    probe = tmp_path / "own.jsonl"
    texts = [" ".join(f"w{3 + i + 7 * j}" for j in range(8)) for i in range(6)]
    probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = []
    for share in (1.0, 1e-6):
        one = catalog.connect(f"duckdb:///{tmp_path / str(share)}.duckdb", create=True)
        asked = {"suites": ("patterns",), "probe": str(probe), "only": True}
        ingest(one, IngestRequest(model=str(tiny_model), batch_share=share, **asked))  # type: ignore[arg-type]
        found.append({row[:4]: row[4] for row in scores(one)})
    assert found[0].keys() == found[1].keys()
    for place, value in found[0].items():
        assert value is None or found[1][place] == pytest.approx(value, rel=1e-4, abs=1e-6), place


def test_a_bug_leaves_its_traceback(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("no such thing")

    monkeypatch.setattr(ingest_run, "ingest", broken)
    job = done(embedded, relations_of(tiny_model, words))
    assert job.state == State.FAILED
    assert "in broken" in str(job.error)
    assert str(job.error).endswith("KeyError: 'no such thing'")


def test_time_limits_end_a_job(
    embedded: Catalog, tiny_model: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(_catalog: Catalog, _request: IngestRequest, progress: Any, **_: Any) -> Any:
        while True:
            progress.stage("counting sheep")
            time.sleep(0.01)

    monkeypatch.setattr(ingest_run, "ingest", endless)
    job = done(embedded, relations_of(tiny_model, words), soft_limit=0.5)
    assert (job.state, job.error) == (
        State.FAILED,
        "it took longer than the soft limit of 0.5 s",
    )


def test_a_job_that_ends_no_more_is_ended(embedded: Catalog, tiny_model: Path, words: Path) -> None:
    """The hard limit, in a process that may be killed for it."""
    job = queued(embedded, relations_of(tiny_model, words))
    script = (
        "import sys, time; from ingest import run; from ingest.service import execute\n"
        "from catalog.database import Database\n"
        "run.ingest = lambda *_, **__: time.sleep(600)\n"
        "here = execute.Here(database=Database(sys.argv[1], lock_timeout=30), name='w',\n"
        "    device='cpu', memory=1 << 40, queues=(), lease=30, grace=0, hard_limit=0.5)\n"
        "execute.run(here, int(sys.argv[2]))\n"
    )
    url = f"duckdb:///{embedded.database.path}"
    ended = subprocess.run(
        [sys.executable, "-c", script, url, str(job.id)],
        cwd=Path(__file__).parents[1],
        check=False,
        timeout=PATIENCE,
    )
    assert ended.returncode == 1
    failed = open_store(embedded.database).get(job.id)
    assert (failed.state, failed.error) == (
        State.FAILED,
        "it took longer than the hard limit of 0.5 s",
    )


def test_a_model_that_cannot_fit_is_refused_or_moved(embedded: Catalog, tiny_model: Path) -> None:
    store = open_store(embedded.database)
    request = IngestRequest(model=str(tiny_model), suites=("patterns",))
    refused = done(embedded, request, memory=1 << 20)
    assert refused.state == State.FAILED
    assert "patterns needs 1.0 GiB (0.0 GiB of weights + 0.5 GiB of activations" in str(
        refused.error
    )
    assert "cpu has 0.0 GiB" in str(refused.error)
    store.worker_beat(worker_row("small", ["small"], memory=1 << 20))
    store.worker_beat(worker_row("large", ["cpu", "large"]))
    moved = done(embedded, request, memory=1 << 20)
    assert (moved.state, moved.queue, moved.attempt) == (State.QUEUED, "large", 0)
    assert waiting(celery_app(embedded.database), ["large"]) == {"large": 1}


def test_a_size_is_told_by_headers(tiny_model: Path, smollm2: Path) -> None:
    size = memory.size_of(str(tiny_model))
    assert size is not None
    assert size.n_params == sum(one.numel() for one in tiny.model("llama").parameters())
    assert size.n_layers == 3
    assert size.outside == 2 * tiny.VOCABULARY * 48 + 48
    packed = memory.size_of(str(smollm2))
    assert packed is not None
    assert 134e6 < packed.n_params < 136e6
    assert packed.n_layers == 30
    weights = memory.device_need(packed, "weights", device="cuda:0", dtype="auto")
    running = memory.device_need(packed, "patterns", device="cuda:0", dtype="auto")
    assert running.parts["of weights"] == 2 * packed.n_params
    assert weights.total > 0
    assert memory.size_of("nobody/nothing") is None


# What a worker refuses


def test_a_worker_refuses_what_its_operator_does_not_allow(
    embedded: Catalog, tmp_path: Path, tiny_model: Path
) -> None:
    model = tmp_path / "pickled"
    model.mkdir()
    flag = tmp_path / "ran"
    (model / "config.json").write_text((tiny_model / "config.json").read_text())

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mknod, (str(flag),))

    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    request = IngestRequest(model=str(model), suites=("weights",), allow_pickle=True)
    job = done(embedded, request)
    assert job.state == State.FAILED
    assert "HEADS_ALLOW_PICKLE=true" in str(job.error)
    assert not flag.exists()
    admit(request, Settings(allow_pickle=True))


def test_paths_stay_within_the_roots(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models"
    monkeypatch.setenv("HEADS_MODEL_ROOTS", f"{root}{os.pathsep}{tmp_path / 'more'}")
    settings = load_settings()
    assert settings.model_roots == (root, tmp_path / "more")
    inside = tiny.save(root / "m", "llama")
    (root / "link").symlink_to(tiny_model)
    (root / "n").mkdir()
    (root / "n" / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    allowed: list[dict[str, str]] = [
        {"model": str(inside)},
        {"model": str(root / ".." / "models" / "m")},
        {"model": "lab/model"},
    ]
    for one in allowed:
        admit(IngestRequest(**one), settings)  # type: ignore[arg-type]
    refused: list[dict[str, str]] = [
        {"model": str(tiny_model)},
        {"model": str(root / ".." / "other")},
        {"model": str(root / "link")},
        {"model": str(root / "n")},
        {"model": "../../etc"},
        {"model": "~/m"},
        {"model": str(inside), "probe": "/etc/passwd"},
        {"model": str(inside), "relations": str(tmp_path)},
    ]
    for one in refused:
        with pytest.raises(UsageError, match="HEADS_MODEL_ROOTS"):
            admit(IngestRequest(**one), settings)  # type: ignore[arg-type]
