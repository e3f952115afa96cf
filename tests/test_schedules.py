"""Schedules: when they are due, what they ingest, and that nothing runs twice."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hub_api
import pytest
import scheduling
import tiny
from hub_api import Repository
from scheduling import (
    HOURLY,
    decisions,
    finish,
    jobs,
    measured,
    reasons,
    spec,
    submit,
    tick,
)
from typer.testing import CliRunner, Result

import catalog
from catalog import Catalog
from catalog.errors import LockedError, UsageError
from catalog.jobs import JobStore, Schedules, Submitted, open_store, schedules
from catalog.jobs.schedules import Decision, Kind
from ingest.metrics import VERSIONS
from ingest.request import IngestRequest
from ingest.schedules import add, interval, preview, run_now, ticking
from ingest.schedules.watches import Watch
from ingest.schedules.when import Timing
from ui import queueing
from ui.cli.main import app

to, store, now = scheduling.to, scheduling.store, scheduling.now

# --- when ---


@pytest.mark.parametrize(
    ("cron", "start", "expected"),
    [
        # 02:30 does not exist on 29 March 2026 in Berlin, and exists twice on 25 October.
        ("30 2 * * *", "2026-03-28T12:00", ["03-29T01:00", "03-30T00:30"]),
        ("30 2 * * *", "2026-10-24T12:00", ["10-25T00:30", "10-26T01:30"]),
        ("30 2 * * *", "2026-10-25T01:15", ["10-26T01:30", "10-27T01:30"]),
        ("0 3 * * *", "2026-03-28T12:00", ["03-29T01:00", "03-30T01:00"]),
        ("0 3 * * *", "2026-10-24T12:00", ["10-25T02:00", "10-26T02:00"]),
        ("0 * * * *", "2026-10-24T23:30", ["10-25T00:00", "10-25T01:00", "10-25T02:00"]),
        ("*/30 * * * *", "2026-03-29T00:20", ["03-29T00:30", "03-29T01:00", "03-29T01:30"]),
        ("0 9 * * MON", "2026-10-23T12:00", ["10-26T08:00", "11-02T08:00"]),
    ],
)
def test_cron_follows_the_clock_on_the_wall(cron: str, start: str, expected: list[str]) -> None:
    timing = Timing(cron=cron, timezone="Europe/Berlin")
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    for one in expected:
        moment = timing.after(moment)
        assert moment == datetime.fromisoformat(f"2026-{one}").replace(tzinfo=UTC)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_cron_is_always_later(zone: str) -> None:
    """From every quarter of an hour around changes of the clock, a next time that is not past."""
    daily = Timing(cron="45 1 * * *", timezone=zone)
    for day in (datetime(2026, 3, 7), datetime(2026, 3, 28), datetime(2026, 4, 4)):  # noqa: DTZ001
        for quarter in range(4 * 72):
            moment = day.replace(tzinfo=UTC) + timedelta(minutes=15 * quarter)
            after = daily.after(moment)
            assert moment < after <= moment + timedelta(hours=26)
            assert daily.after(after) - after >= timedelta(hours=22)
    for quarter in range(4 * 72):
        moment = datetime(2026, 10, 24, tzinfo=UTC) + timedelta(minutes=15 * quarter)
        local = daily.after(moment).astimezone(ZoneInfo(zone))
        assert daily.after(moment) > moment
        assert (local.hour, local.minute) == (1, 45)


def test_intervals() -> None:
    assert interval("30m") == timedelta(minutes=30)
    assert interval("2w") == timedelta(weeks=2)
    timing = Timing(every=interval("6h"))
    due = datetime(2026, 1, 1, tzinfo=UTC)
    assert timing.after(due, due) == due + timedelta(hours=6)
    assert timing.after(due + timedelta(hours=20), due) == due + timedelta(hours=24)
    assert timing.after(due + timedelta(hours=6), due) == due + timedelta(hours=12)


@pytest.mark.parametrize("text", ["", "6", "h", "0h", "-1h", "6 hours", "1.5h"])
def test_bad_intervals(text: str) -> None:
    with pytest.raises(UsageError, match="--every"):
        interval(text)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"cron": "61 * * * *"}, "bad minute"),
        ({"cron": "0 0 30 2 *"}, "--cron"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 0 0 * * *"}, "five fields"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"cron": "0 3 * * *", "timezone": "../../etc/passwd"}, "--timezone"),
        ({"cron": "0 3 * * *", "every": HOURLY}, "either"),
        ({}, "either"),
    ],
)
def test_bad_times(facts: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Timing(**facts)


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


# --- once, whoever runs it ---


@pytest.mark.usefixtures("the_hub")
def test_what_was_missed_runs_once(to: Catalog, store: JobStore, now: datetime) -> None:
    add(store, spec("interval"), now)
    add(store, spec("cron", every=None, cron="0 3 * * *"), now)
    week = now + timedelta(days=7, minutes=7)
    assert sorted(ran.name for ran in tick(store, to, week)) == ["cron", "interval"]
    assert tick(store, to, week) == []
    kept = Schedules(store)
    assert kept.get("interval").next_run_at == now + timedelta(days=7, hours=1)
    assert week < kept.get("cron").next_run_at <= week + timedelta(days=1)


def test_ticks_at_once_run_it_once(the_hub: hub_api.Hub, empty_catalog: Catalog) -> None:
    to, store = empty_catalog, open_store(empty_catalog.database)
    now = store.now()
    the_hub.repositories["lab/a"] = Repository()
    the_hub.delay = 0.3
    for name in "abc":
        add(store, spec(name), now)
    ran: list[str] = []
    start = threading.Barrier(6)

    def go() -> None:
        start.wait()
        ran.extend(one.name for one in tick(open_store(to.database), to, now))

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == ["a", "b", "c"]
    assert len(the_hub.asked) == 3


CLAIM = """
import sys
from datetime import datetime
import catalog
from catalog.jobs import Schedules, open_store
kept = Schedules(open_store(catalog.connect(sys.argv[1]).database))
print("ready", flush=True)
sys.stdin.readline()
schedule = kept.claim_due(datetime.fromisoformat(sys.argv[2]))
print(schedule and schedule.name)
"""


def test_processes_at_once_claim_it_once(empty_url: str) -> None:
    store = open_store(catalog.connect(empty_url, create=True).database)
    now = store.now()
    add(store, spec("one"), now)
    command = [sys.executable, "-c", CLAIM, empty_url, now.isoformat()]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    won = sorted(one.communicate()[0].strip() for one in started)
    assert won == ["None", "None", "None", "one"]


def test_a_dead_schedulers_claim_runs_out(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    """It had submitted one of two models, and written that down."""
    the_hub.repositories |= {"lab/a": Repository(), "lab/b": Repository()}
    add(store, spec(), now)

    class Killed(BaseException):
        """Nothing of ours handles it: as after kill -9, the claim stays."""

    done = 0

    def dying(to: Catalog, request: IngestRequest, by: str) -> list[Submitted]:
        nonlocal done
        done += 1
        if done == 2:
            raise Killed
        return submit(to, request, by)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedules, "release", lambda *_: None)
        with pytest.raises(Killed):
            ticking.tick(store, to, now, dying)
    assert tick(store, to, now + timedelta(minutes=4)) == []
    with pytest.raises(UsageError, match="being run now"):
        run_now(store, to, "s", now, submit)
    (ran,) = tick(store, to, now + timedelta(minutes=6))
    assert decisions(ran.decided) == {"lab/a": Decision.SUBMITTED}
    assert sorted(jobs(store)) == [("lab/a", "a" * 40), ("lab/b", "a" * 40)]


def test_an_interrupted_run_is_given_back(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    add(store, spec(), now)

    def interrupted(*_: object) -> list[Submitted]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ticking.tick(store, to, now, interrupted)
    assert [ran.result for ran in tick(store, to, now)] == ["submitted 1, refused 0"]


def test_removed_while_it_runs(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories |= {"lab/a": Repository(), "lab/b": Repository()}
    add(store, spec(), now)

    def removing(to: Catalog, request: IngestRequest, by: str) -> list[Submitted]:
        Schedules(store).remove("s")
        return submit(to, request, by)

    (ran,) = ticking.tick(store, to, now, removing)
    assert "removed" in ran.result
    assert len(store.list()) == 1
    assert Schedules(store).list() == []


def test_paused_and_run_by_hand(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    kept = Schedules(store)
    add(store, spec(), now + HOURLY)
    kept.pause("s")
    assert tick(store, to, now + 5 * HOURLY) == []
    assert schedules.listing(kept).rows()[0]["next_run"] is None
    assert run_now(store, to, "s", now, submit).result == "submitted 1, refused 0"
    assert kept.get("s").next_run_at == now + HOURLY
    kept.pause("s", is_paused=False)
    assert len(tick(store, to, now + 5 * HOURLY)) == 1


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
