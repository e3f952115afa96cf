"""Schedules: each runs once, whoever runs them, and whatever becomes of who does."""

import subprocess
import sys
import threading
from datetime import datetime, timedelta
from typing import Any

import hub_api
import pytest
import scheduling
from hub_api import Repository
from scheduling import HOURLY, decisions, jobs, spec, submit, tick

import catalog
from catalog import Catalog
from catalog.errors import UsageError
from catalog.jobs import JobStore, Schedules, Submitted, open_store, schedules
from catalog.jobs.schedules import Decision
from ingest.request import IngestRequest
from ingest.schedules import add, run_now, ticking

to, store, now = scheduling.to, scheduling.store, scheduling.now


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
