"""Schedules: what they ingest, and that nothing is ingested twice."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import hub_api
import pytest
import scheduling
import tiny
from hub_api import Repository
from scheduling import HOURLY, decisions, finish, jobs, measured, reasons, spec, submit, tick
from typer.testing import CliRunner, Result

from catalog import Catalog
from catalog.errors import LockedError, UsageError
from catalog.jobs import JobStore, Schedules, Submitted, open_store, schedules
from catalog.jobs.schedules import Decision, Kind
from ingest.metrics import VERSIONS
from ingest.request import IngestRequest
from ingest.schedules import add, preview, ticking
from ingest.schedules.watches import Watch
from ui import queueing
from ui.cli.main import app

to, store, now = scheduling.to, scheduling.store, scheduling.now

# --- what is ingested, once ---


def test_a_new_revision_is_ingested_once(the_hub: hub_api.Hub, empty_catalog: Catalog) -> None:
    to, store = empty_catalog, open_store(empty_catalog.database)
    now = store.now()
    one, two = "1" * 40, "2" * 40
    the_hub.repositories["lab/a"] = Repository(sha=one)
    add(store, spec(kind=Kind.MODEL), now)
    (first,) = tick(store, to, now)
    assert first.result == "submitted 1, refused 0"
    assert tick(store, to, now) == []
    for hours in range(1, 4):
        (again,) = tick(store, to, now + hours * HOURLY)
        assert again.result == "submitted 0, refused 0"
    # The job for the first revision has not even begun when the second appears.
    the_hub.repositories["lab/a"].sha = two
    for hours in range(4, 7):
        tick(store, to, now + hours * HOURLY)
    assert jobs(store) == [("lab/a", one), ("lab/a", two)]
    (job, _) = store.list()
    assert (job.request["name"], job.submitted_by) == ("lab/a", "schedule s")
    (item,) = schedules.found(Schedules(store), "s")
    assert (item["revision"], item["decision"], item["jobs"]) == (two, "submitted", [job.id])


def test_a_branch(the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime) -> None:
    step = "5" * 40
    the_hub.repositories["lab/a"] = Repository(branches={"step5": step})
    add(store, spec(kind=Kind.MODEL, target={"model": "lab/a", "revision": "step5"}), now)
    tick(store, to, now)
    (job,) = store.list()
    assert job.request == {"name": "lab/a@step5", "revision": step}


def test_what_the_catalog_has_is_not_new(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    sha = "3" * 40
    the_hub.repositories["lab/a"] = Repository(sha=sha)
    measured(to, "lab/a", sha)
    same = spec(request={"suites": ["patterns"]})
    more = spec(request={"suites": ["patterns", "weights"]})
    assert decisions(preview(to, same, now, store)) == {"lab/a": Decision.KNOWN}
    assert decisions(preview(to, more, now, store)) == {"lab/a": Decision.SUBMITTED}
    the_hub.repositories["lab/a"].sha = "4" * 40
    assert decisions(preview(to, same, now, store)) == {"lab/a": Decision.SUBMITTED}


def test_a_dry_run_changes_nothing(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories |= {"lab/a": Repository(), "lab/t5": Repository(architecture="t5")}
    kept = add(store, spec(), now)
    told = preview(to, kept, now, store)
    assert decisions(told) == {"lab/t5": Decision.REFUSED, "lab/a": Decision.SUBMITTED}
    assert store.list() == []
    assert Schedules(store).items(kept) == {}
    (ran,) = tick(store, to, now)
    assert decisions(ran.decided) == decisions(told)
    assert decisions(preview(to, Schedules(store).get("s"), now, store)) == {
        "lab/t5": Decision.REFUSED
    }


def test_a_collection(the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime) -> None:
    """Of many models, some deleted and some hidden; data sets and papers are left out."""
    names = [f"lab/m{i:02}" for i in range(25)]
    the_hub.repositories |= {name: Repository() for name in names}
    the_hub.repositories["lab/m03"].private = True
    del the_hub.repositories["lab/m07"]
    listed = [("model", name) for name in names] + [("dataset", "lab/d"), ("paper", "2307.09288")]
    the_hub.collections["lab/best-1"] = listed
    add(store, spec(kind=Kind.COLLECTION, limits={"at_most": 100}), now)
    (ran,) = tick(store, to, now)
    assert ran.result == "submitted 23, refused 2"
    assert "not on the Hub, or private" in (reasons(ran.decided)["lab/m07"] or "")
    assert len(jobs(store)) == 23


def test_a_target_that_is_gone_is_an_error_of_its_schedule_alone(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime, tmp_path: Path
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    gone = {"model": "lab/gone", "revision": None}
    add(store, spec("1", Kind.MODEL, target=gone), now)
    add(store, spec("2", Kind.COLLECTION), now)
    add(store, spec("3", Kind.FOLDER, target={"folder": str(tmp_path / "gone")}), now)
    add(store, spec("4", Kind.HUB), now)
    told = {ran.name: ran.result for ran in tick(store, to, now)}
    assert told == {
        "1": "error: the Hub does not give lab/gone: it is not on the Hub, or private: set "
        "HF_TOKEN",
        "2": "error: the Hub does not give the collection lab/best-1: it answers 404",
        "3": f"error: {tmp_path / 'gone'} cannot be read: No such file or directory",
        "4": "submitted 1, refused 0",
    }
    for row in schedules.listing(Schedules(store)):
        assert row["last_result"] == told[row["schedule"]]
        assert row["next_run"] == (now + HOURLY).replace(microsecond=0)


def test_a_bug_in_one_schedule_stops_no_other(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories |= {"lab/a": Repository(), "new/b": Repository()}
    add(store, spec("1"), now)
    add(store, spec("2", target={"author": "new", "search": None}), now)

    def broken(to: Catalog, request: IngestRequest, by: str) -> list[Submitted]:
        if request.model == "lab/a":
            raise ZeroDivisionError("no such thing")
        return submit(to, request, by)

    first, second = ticking.tick(store, to, now, broken)
    assert first.result == "error: ZeroDivisionError: no such thing"
    assert second.result == "submitted 1, refused 0"
    (again,) = [r for r in tick(store, to, now + HOURLY) if r.name == "1"]
    assert again.result == "submitted 1, refused 0"


def test_a_catalog_in_use_is_tried_again_soon(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    add(store, spec(every=None, cron="0 3 * * *"), now - timedelta(days=2))

    def locked(*_: object) -> list[Submitted]:
        raise LockedError("it is in use")

    ticking.tick(store, to, now, locked)
    kept = Schedules(store)
    assert kept.get("s").next_run_at == now + timedelta(seconds=30)
    assert "in use; tried again at" in (kept.get("s").last_result or "")
    (ran,) = tick(store, to, now + timedelta(seconds=30))
    assert ran.result == "submitted 1, refused 0"
    assert kept.get("s").failures == 0


# --- versions of metrics ---


def test_a_metric_that_has_risen_is_measured_again(
    to: Catalog, store: JobStore, now: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tmp_path / "m", "llama", seed=1)
    monkeypatch.setitem(VERSIONS, "induction", 1)
    measured(to, "m", "r1", source=f"folder:{folder}")
    measured(to, "gone", "r1", source="folder:/gone")
    measured(to, "lab/a", "c" * 40, source="hub:lab/a")
    renewed = spec(kind=Kind.STALE, request={})
    assert list(preview(to, renewed, now, store)) == []
    monkeypatch.setitem(VERSIONS, "induction", 2)
    add(store, renewed, now)
    asked: list[IngestRequest] = []

    def keeping(to: Catalog, request: IngestRequest, by: str) -> list[Submitted]:
        asked.append(request)
        return submit(to, request, by)

    (ran,) = ticking.tick(store, to, now, keeping)
    assert decisions(ran.decided) == {
        "m patterns": Decision.SUBMITTED,
        "gone patterns": Decision.REFUSED,
        "lab/a patterns": Decision.SUBMITTED,
    }
    assert "no longer at /gone" in (reasons(ran.decided)["gone patterns"] or "")
    assert [(r.model, r.name, r.revision, r.suites, r.dtype) for r in asked] == [
        (str(folder), "m", None, ("patterns",), "float32"),
        ("lab/a", "lab/a", "c" * 40, ("patterns",), "float32"),
    ]
    (again,) = tick(store, to, now + HOURLY)
    assert again.result == "submitted 0, refused 1"
    for job in store.list():
        finish(store, job)
    monkeypatch.setitem(VERSIONS, "induction", 3)
    (risen,) = tick(store, to, now + 2 * HOURLY)
    assert risen.result == "submitted 2, refused 1"


def test_what_has_risen_is_measured_as_it_was(
    empty_catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On inputs of the user's own where a schedule has them, and with the same definition."""
    to, store = empty_catalog, open_store(empty_catalog.database)
    now = store.now()
    folder = tiny.save(tmp_path / "m", "llama")
    monkeypatch.setitem(VERSIONS, "induction", 1)
    inputs: dict[str, Any] = {"probes": ("plain", "mine"), "params": {"first_mlp": False}}
    measured(to, "m", "r1", source=f"folder:{folder}", **inputs)
    monkeypatch.setitem(VERSIONS, "induction", 2)

    def asked(**request: Any) -> dict[str, tuple[Any, ...]]:
        found = Watch.of(Kind.STALE, {}, {}, request).look(to, None, now).found
        return {
            one.item: (one.request.probe, one.request.only, one.request.first_mlp) for one in found
        }

    mine = str(tmp_path / "mine.jsonl")
    assert asked(probe=mine) == {
        "m patterns": (None, False, False),
        "m patterns on mine": (mine, True, False),
    }
    assert asked(probe=mine, only=True) == {"m patterns on mine": (mine, True, False)}
    assert list(asked(suites=["weights"])) == []
    told = preview(to, spec(kind=Kind.STALE, request={}), now, store)
    assert decisions(told) == {
        "m patterns": Decision.SUBMITTED,
        "m patterns on mine": Decision.REFUSED,
    }
    assert "--probe" in (reasons(told)["m patterns on mine"] or "")


# --- end to end ---


def heads(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--db", url, "schedule", *arguments])


def test_a_model_ingests_itself(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, duckdb_url: str, tmp_path: Path
) -> None:
    """Two schedulers and a worker; a model appears on the Hub, then another revision of it."""
    relations = tiny.relations(tmp_path / "words")

    def commit(sha: str, seed: int) -> None:
        folder = tiny.save(tmp_path / sha, "llama", seed=seed)
        files = [file.name for file in folder.iterdir()]
        the_hub.repositories["lab/tiny"] = Repository(sha=sha, files=files, folder=folder)

    one, two = "1" * 40, "2" * 40
    commit(one, seed=1)
    settings = {
        "HF_ENDPOINT": the_hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    asked = ["--hub-author", "lab", "--max-params", "2M", "--every", "1h"]
    asked += ["--suite", "relations", "--relations", str(relations), "--only"]
    tried = heads(duckdb_url, "add", "lab", *asked, "--dry-run", "-fjson")
    assert tried.exit_code == 0, tried.stderr
    assert [row["decision"] for row in json.loads(tried.stdout)] == ["would submit"]
    assert heads(duckdb_url, "add", "lab", *asked).exit_code == 0

    def revisions() -> list[str]:
        rows = to.sql("SELECT r.revision FROM runs r WHERE status = 'succeeded' ORDER BY run_id")
        return [row["revision"] for row in rows]

    commands = (["scheduler"], ["scheduler"], ["worker", "--device=cpu"])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ui.cli", "--db", duckdb_url, *command],
            env=os.environ | settings,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        _until(lambda: revisions() == [one])
        commit(two, seed=2)
        ran = heads(duckdb_url, "run", "lab")
        assert "submitted 1, refused 0" in ran.stderr
        _until(lambda: revisions() == [one, two])
    finally:
        for process in started:
            process.terminate()
        codes = [process.wait(60) for process in started]
    assert codes == [0, 0, 0]
    assert [job.state for job in store.list()] == ["succeeded"] * 2
    assert [job.submitted_by for job in store.list()] == ["schedule lab"] * 2
    (row,) = to.sql("SELECT model, revision, source FROM models")
    assert row == {"model": "lab/tiny", "revision": two, "source": "hub:lab/tiny"}
    listed = heads(duckdb_url, "list", "-f", "json")
    (shown,) = json.loads(listed.stdout)
    assert (shown["watches"], shown["when"]) == ("models of lab", "every 1h")
    assert shown["last_result"] == "submitted 1, refused 0"


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_command_line(tmp_path: Path, duckdb_url: str) -> None:
    (inbox := tmp_path / "inbox").mkdir()
    assert heads(duckdb_url, "add", "a", "--folder", str(inbox), "--every", "10m").exit_code == 0
    assert heads(duckdb_url, "pause", "a").exit_code == 0
    (shown,) = json.loads(heads(duckdb_url, "list", "--format", "json").stdout)
    assert (shown["schedule"], shown["kind"], shown["paused"]) == ("a", "folder", True)
    assert (shown["watches"], shown["next_run"]) == (str(inbox), None)
    for wrong, told in (
        (["b", "--every", "1h"], "watches one thing"),
        (["b", "--stale", "--model", "lab/a", "--every", "1h"], "watches one thing"),
        (["b", "--stale", "--min-params", "1M", "--every", "1h"], "limits are for"),
        (["b", "--hub-author", "lab", "--max-params", "big", "--every", "1h"], "'big'"),
        (["b", "--folder", str(tmp_path / "no"), "--every", "1h"], "is no folder"),
        (["a", "--stale", "--every", "1d"], "already"),
    ):
        refused = heads(duckdb_url, "add", *wrong).exception
        assert isinstance(refused, UsageError)
        assert told in str(refused)
    assert heads(duckdb_url, "remove", "a").exit_code == 0
    assert isinstance(heads(duckdb_url, "show", "a").exception, UsageError)


def test_who_added_it_is_kept(to: Catalog, store: JobStore, duckdb_url: str) -> None:
    wish = queueing.Wish(name="page", kind=Kind.STALE, every="1d")
    queueing.add_schedule(to, wish, by="ada@lab.org")
    assert heads(duckdb_url, "add", "shell", "--stale", "--every", "1d").exit_code == 0
    add(store, spec("old"), store.now())
    with store.database.connect(writable=True) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE schedule SET added_by = NULL WHERE name = 'old'")
    listed = json.loads(heads(duckdb_url, "list", "-f", "json").stdout)
    assert {row["schedule"]: row["by"] for row in listed} == {
        "old": None,
        "page": "ada@lab.org",
        "shell": "user",
    }
    assert "added by ada@lab.org at" in heads(duckdb_url, "show", "page").stderr
    assert "added by" not in heads(duckdb_url, "show", "old").stderr


def test_names(store: JobStore, now: datetime) -> None:
    add(store, spec("s"), now)
    with pytest.raises(UsageError, match="a schedule 's' already"):
        add(store, spec("s"), now)
    for ask in (Schedules(store).get, Schedules(store).remove, Schedules(store).pause):
        with pytest.raises(UsageError, match="no schedule 'none'"):
            ask("none")
    with pytest.raises(UsageError, match="no suite 'heights'"):
        add(store, spec("t", request={"suites": ["heights"]}), now)
