"""Storing patterns as a job: asked for twice, checked by the worker, done, and broken off."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import workers
from serving import here
from test_capture import PROMPT, TOKENS, own
from workers import Service

import catalog
from catalog import Catalog, patterns
from catalog.errors import UsageError
from catalog.jobs import State, open_store
from catalog.pattern_rows import MAX_ERROR
from ingest import capture as capturing
from ingest.request import CaptureRequest, IngestRequest
from ingest.service import execute, memory
from ingest.service.submit import submit, submit_patterns


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture
def embedded(duckdb_url: str) -> Catalog:
    """A catalog in a file, with a folder for messages beside it."""
    return catalog.connect(duckdb_url, create=True)


@pytest.fixture
def service(embedded: Catalog, duckdb_url: str, tmp_path: Path) -> Iterator[Service]:
    with workers.service(embedded, tmp_path, {"HEADS_DATABASE_URL": duckdb_url}) as one:
        yield one


def asked(checkpoint: Path, **more: Any) -> CaptureRequest:
    facts: dict[str, Any] = {"heads": "L0H0,L2H3", "prompts": (PROMPT,)}
    return CaptureRequest(model=str(checkpoint), **(facts | more))


def test_a_worker_stores_what_was_queued_on_the_command_line(
    service: Service, checkpoint: Path
) -> None:
    command = [sys.executable, "-m", "ui.cli", "patterns", str(checkpoint), "--queue"]
    command += ["--heads", "L0H0", "--heads", "L2H3", "--prompt", PROMPT]
    url = service.catalog.database.url.render_as_string(hide_password=False)

    def queue() -> tuple[int, str]:
        done = subprocess.run(
            command,
            env=os.environ | {"HEADS_DATABASE_URL": url, "PYTHONPATH": str(workers.ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout), done.stderr

    job_id, told = queue()
    assert f"job {job_id}: stored_patterns of {checkpoint}, in queue cpu" in told
    assert queue() == (job_id, told.replace("in queue cpu", "queued already"))
    service.worker()
    [job] = service.finish([job_id])
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    expected = own(checkpoint, TOKENS)
    for one in patterns.read(service.catalog, "llama", ["L0H0", "L2H3"], prompt=PROMPT):
        assert abs(one.numpy() - expected[one.layer, one.head]).max() <= MAX_ERROR + 1e-6
        assert [one.run_id] == job.run_ids
    # Once it is over, the same is another job, which finds all of it there.
    again, _ = queue()
    [known] = service.finish([again])
    assert (again != job_id, known.run_ids) == (True, job.run_ids)
    assert len(service.catalog.sql("SELECT * FROM runs")) == 1


def test_what_is_the_same_is_one_job(embedded: Catalog, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"text": PROMPT}))
    of_file = asked(checkpoint, prompts=(), prompt_file=str(file))
    first = submit_patterns(embedded, of_file)
    assert first.is_new
    assert CaptureRequest.from_json(json.loads(json.dumps(first.job.request))) == of_file
    copy = tmp_path / "there" / "mine.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert submit_patterns(embedded, of_file).job.id == first.job.id
    file.write_text(json.dumps({"text": f"{PROMPT} w9"}))
    assert submit_patterns(embedded, of_file).is_new
    assert submit_patterns(embedded, asked(checkpoint)).is_new
    assert submit_patterns(embedded, asked(checkpoint, heads="L0H0")).is_new
    assert all(
        one.is_new
        for one in submit(embedded, IngestRequest(model=str(checkpoint), suites=("patterns",)))
    )


def test_what_is_no_request_is_refused(embedded: Catalog, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="'5' is no head"):
        submit_patterns(embedded, asked(checkpoint, heads="5"))
    with pytest.raises(UsageError, match="no request of this release"):
        CaptureRequest.from_json({"model": "m", "heads": "L0", "prompts": ["a b"], "other": 1})


@pytest.mark.parametrize(
    ("more", "settings", "reason"),
    [
        ({"heads": "L9H0"}, {}, "llama has 3 layers of 6 heads, counted from 0, and no L9H0"),
        ({"prompts": ("w3",)}, {}, "has 1 tokens; a pattern needs at least 2"),
        ({"allow_pickle": True}, {}, "HEADS_ALLOW_PICKLE=true"),
        ({}, {"HEADS_MODEL_ROOTS": "/nowhere"}, "HEADS_MODEL_ROOTS"),
        ({"prompts": (), "prompt_file": "/etc/passwd"}, {"HEADS_MODEL_ROOTS": "{}"}, "/etc/passwd"),
    ],
)
def test_the_worker_checks_it_as_an_ingest(
    embedded: Catalog,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    settings: dict[str, str],
    reason: str,
) -> None:
    job = submit_patterns(embedded, asked(checkpoint, **more)).job
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(checkpoint))
    execute.run(here(embedded), job.id)
    failed = open_store(embedded.database).get(job.id)
    assert failed.state == State.FAILED
    assert reason in str(failed.error)
    assert len(embedded.sql("SELECT * FROM stored_patterns")) == 0


def test_a_model_that_does_not_fit_is_not_loaded(embedded: Catalog, checkpoint: Path) -> None:
    job = submit_patterns(embedded, asked(checkpoint)).job
    execute.run(here(embedded, memory=1), job.id)
    failed = open_store(embedded.database).get(job.id)
    assert failed.state == State.FAILED
    assert "does not fit: stored_patterns needs" in str(failed.error)
    size = memory.size_of(str(checkpoint))
    assert size is not None
    need = memory.device_need(size, "stored_patterns", device="cuda:0", dtype="float32")
    assert need.parts["of weights"] == 4 * size.n_params


def test_too_little_memory_is_not_tried_again(
    embedded: Catalog, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(capturing, "attention_patterns", too_much)
    job = submit_patterns(embedded, asked(checkpoint)).job
    execute.run(here(embedded), job.id)
    failed = open_store(embedded.database).get(job.id)
    assert (failed.state, failed.attempt) == (State.FAILED, 1)
    assert "a shorter prompt takes less" in str(failed.error)
    assert [row["status"] for row in embedded.sql("SELECT status FROM runs")] == ["failed"]


def test_what_another_has_taken_over_is_not_published(
    embedded: Catalog, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(embedded.database)
    job = submit_patterns(embedded, asked(checkpoint)).job
    measure = capturing.attention_patterns

    def while_another_takes_it(*given: Any) -> Any:
        found = measure(*given)
        token = store.get(job.id).lease_token
        assert token is not None
        store.retry_later(job.id, token, job.request, "taken away")
        assert store.claim(job.id, worker="other", device="cpu", lease_seconds=60)
        return found

    monkeypatch.setattr(capturing, "attention_patterns", while_another_takes_it)
    execute.run(here(embedded), job.id)
    assert store.get(job.id).worker == "other"
    assert len(embedded.sql("SELECT * FROM stored_patterns")) == 0
    assert [row["status"] for row in embedded.sql("SELECT status FROM runs")] == ["failed"]
