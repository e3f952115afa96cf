"""Attacks: by who writes to the broker, by who queues jobs, and by who publishes models."""

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import servers
import tiny
from kombu.connection import Connection
from kombu.entity import Exchange
from kombu.messaging import Producer
from kombu.utils.uuid import uuid

import catalog
from catalog import Catalog
from catalog.database import Database
from catalog.errors import ModelError, UsageError
from catalog.jobs import JobSpec, open_store
from catalog.settings import Settings
from ingest.readers import loading
from ingest.readers.source import resolve
from ingest.request import IngestRequest
from ingest.service.app import TASK, celery_app
from ingest.service.guard import admit
from ingest.service.submit import submit

ROOT = Path(__file__).parents[1]


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mknod, (str(self.path),))


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "valkey").mkdir()
    with servers.valkey(tmp_path / "valkey") as server:
        monkeypatch.setenv("HEADS_BROKER_URL", server.url)
        yield server.url


@contextmanager
def worker(one: Catalog, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui.cli", "worker", "--device=cpu", "--queues=cpu"],
            env=os.environ | {"HEADS_DATABASE_URL": str(one.database.url), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def until(condition: Callable[[], Any], told: Callable[[], str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def _send(url: str, body: object, task: str = TASK, **properties: Any) -> None:
    """A message as Celery's protocol has it, past all that Celery checks when it sends."""
    headers = {"lang": "py", "task": task, "id": uuid(), "root_id": None, "retries": 0}
    with Connection(url) as connection:
        Producer(connection).publish(
            body,
            routing_key="cpu",
            exchange=Exchange("heads", type="direct"),
            headers=headers | {"argsrepr": "", "kwargsrepr": ""},
            correlation_id=headers["id"],
            **{"serializer": "json", **properties},
        )


def test_no_message_does_more_than_to_name_a_job(
    duckdb_url: str, broker: str, tmp_path: Path
) -> None:
    one = catalog.connect(duckdb_url, create=True)
    flag, log = tmp_path / "ran", tmp_path / "worker.log"
    rest: tuple[Any, ...] = (
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    )
    messages = redis.Redis.from_url(broker)
    with worker(one, log) as process:
        until(lambda: b"takes jobs" in log.read_bytes(), log.read_text)
        pickled = pickle.dumps(((Evil(flag),), *rest))
        for kind in ("application/x-python-serialize", "application/data", "application/json"):
            _send(broker, pickled, content_type=kind, content_encoding="binary", serializer=None)
        for arguments in (
            [f"1; touch {flag}"],
            [f"$(touch {flag})"],
            ["../../../../etc/passwd"],
            ["x" * 10_000_000],
            [10**30],
            [-1],
            [2**40],
            [1.5],
            [None],
            [[1]],
            [{"model": "/etc"}],
            [],
            [1, 2],
        ):
            _send(broker, (arguments, *rest))
        _send(broker, ([1], {"request": {"model": "/etc"}}, rest[1]))
        _send(broker, ([], {"job_id": f"`touch {flag}`"}, rest[1]))
        _send(broker, ([1], *rest), task="os.system")
        _send(broker, ([f"touch {flag}"], *rest), task="celery.group")
        _send(broker, "no tuple")
        _send(broker, {"task": "os.system", "args": [f"touch {flag}"], "id": uuid()})
        # Behind all of these, one that is meant: the same worker does it.
        model = tiny.save(tmp_path / "m", "llama")
        (queued,) = submit(one, IngestRequest(model=str(model), suites=("weights",)))
        store = open_store(one.database)
        until(lambda: store.get(queued.job.id).is_over, log.read_text)
        assert store.get(queued.job.id).state == "succeeded"
        assert process.poll() is None
        until(lambda: not messages.llen("cpu") and not messages.hlen("unacked"), log.read_text)
    assert not flag.exists()
    assert len(store.list()) == 1
    assert len(log.read_bytes()) < 1_000_000


def test_the_application_takes_and_writes_nothing_but_json(duckdb_url: str) -> None:
    catalog.connect(duckdb_url, create=True)
    app = celery_app(Database(duckdb_url, lock_timeout=1))
    assert list(app.conf.accept_content) == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"
    assert not app.conf.worker_enable_remote_control


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "x", "command": "id"},
        {"model": ["/etc"]},
        {"model": "x; id", "suites": ["weights"]},
        {"model": "/etc/passwd", "suites": ["weights"]},
        {"model": "\0", "suites": ["weights"]},
        {"model": "x" * 5_000, "suites": ["weights"]},
        {"model": "lab/../../etc", "suites": ["weights"]},
        {},
    ],
)
def test_a_job_that_asks_for_something_else_fails_and_the_worker_goes_on(
    duckdb_url: str, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ingest.service import execute

    monkeypatch.setenv("HEADS_MODEL_ROOTS", str(tmp_path))
    one = catalog.connect(duckdb_url, create=True)
    store = open_store(one.database)
    spec = JobSpec(model="x", suite="weights", request=request_, queue="cpu", key="k")
    job = store.submit(spec).job
    here = execute.Here(
        database=one.database,
        name="w",
        device="cpu",
        memory=1 << 40,
        queues=("cpu",),
        lease=30,
        grace=0,
    )
    execute.run(here, job.id)
    assert store.get(job.id).state == "failed"
    assert len(one.sql("SELECT * FROM runs")) == 0


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "/etc", "-x", "a b", "x" * 300, "a\n"])
def test_a_revision_is_a_name_and_no_path(revision: str) -> None:
    with pytest.raises(UsageError, match="no branch, tag or commit"):
        resolve("lab/tiny", revision=revision)


@pytest.mark.parametrize(
    "model",
    ["lab/..", "../lab", "lab/a/b", "/lab", "~root/x", ".hidden/x", "x" * 97, "a b", "lab/x\n", ""],
)
def test_what_is_no_hub_id_is_a_path_and_outside_of_the_roots(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="HEADS_MODEL_ROOTS"):
        admit(IngestRequest(model=model), Settings(model_roots=(tmp_path,)))


def test_links_deep_in_a_model_lead_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    outside.mkdir()
    (root / "m" / "deep").mkdir(parents=True)
    settings = Settings(model_roots=(root,))
    admit(IngestRequest(model=str(root / "m")), settings)
    (root / "m" / "deep" / "link").symlink_to(outside)
    with pytest.raises(UsageError, match="HEADS_MODEL_ROOTS"):
        admit(IngestRequest(model=str(root / "m")), settings)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "a/b", "..", 1, None]
)
def test_an_index_names_files_beside_it(tmp_path: Path, name: object) -> None:
    tiny.save(tmp_path / "other", "llama")
    model = tiny.save(tmp_path / "m", "llama")
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="has no weight_map of tensors to files beside it"):
        resolve(str(model))


@pytest.mark.parametrize("where", ["config", "known config", "tokenizer"])
def test_code_from_a_checkpoint_never_runs_whatever_is_answered(
    tmp_path: Path,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, flag = tiny.save(tmp_path / "m", "llama"), tmp_path / "ran"
    (model / "evil.py").write_text(
        f"open({str(flag)!r}, 'w')\n"
        "from transformers import LlamaConfig, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig): model_type = 'evil'\n"
        "class Tokenizer(PreTrainedTokenizerFast): ...\n"
    )
    changes = {
        "config": {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
        "known config": {"auto_map": {"AutoConfig": "evil.Config"}},
        "tokenizer": {
            "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
            "tokenizer_class": "Tokenizer",
        },
    }
    file = model / ("tokenizer_config.json" if where == "tokenizer" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes[where]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    source = resolve(str(model))
    if where == "known config":
        prepared = loading.prepare(source)
        loading.load(prepared, device="cpu", dtype="float32")
    else:
        with pytest.raises(ModelError, match="custom code"):
            loading.prepare(source)
    assert not flag.exists()
    assert "[y/N]" not in "".join(capsys.readouterr())


def test_transformers_is_never_left_to_ask() -> None:
    """Where nothing is said of it, some of its ways ask, and then run code beside a model."""
    calls = [
        call
        for path in (ROOT / "ingest").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"from_pretrained", "from_config"}
    ]
    assert len(calls) >= 6
    for call in calls:
        said = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert said.get("trust_remote_code") == "False", ast.unparse(call)
