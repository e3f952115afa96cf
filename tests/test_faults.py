"""Workers die, freeze and meet, and the catalog ends as after one clean run."""

import contextlib
import logging
import random
import threading
import time
from pathlib import Path

import faults
import psutil
import pytest
import workers
from faults import (
    Clean,
    Inputs,
    held_by_one_of_two,
    outcomes,
    pause_between_writes,
    publishing_held,
    queue,
    require_clean,
    require_second_attempt,
)
from workers import Service

from ingest.service.app import celery_app, nudge, waiting

inputs, clean = faults.inputs, faults.clean
postgres, valkey, serve = faults.postgres, faults.valkey, faults.serve
on_servers, embedded, anywhere = faults.on_servers, faults.embedded, faults.anywhere

_log = logging.getLogger(__name__)


# Workers that die


def test_a_killed_worker_in_mid_job(anywhere: Service, inputs: Inputs, clean: Clean) -> None:
    """Its whole group, as when power fails: nothing is left to tell the broker."""
    request = inputs.patterns()
    job, at_work = held_by_one_of_two(anywhere, request)
    killed = time.monotonic()
    at_work.kill_all()
    again = anywhere.when(job.id, lambda job: job.attempt == 2)
    _log.info("running again %.1f s after the kill", time.monotonic() - killed)
    assert again.worker != job.worker
    require_second_attempt(anywhere, job, clean([request]))


def test_a_killed_child_in_mid_job(anywhere: Service, inputs: Inputs, clean: Clean) -> None:
    """As the kernel does when memory is short: the worker itself lives, and does it again."""
    request = inputs.patterns()
    anywhere.scheduler()
    worker = anywhere.worker()
    job = anywhere.measuring(queue(anywhere, request))
    assert job.pid is not None
    worker.kill_child(job.pid)
    done = require_second_attempt(anywhere, job, clean([request]))
    assert done.worker == job.worker


def test_a_child_whose_worker_was_killed(embedded: Service, inputs: Inputs, clean: Clean) -> None:
    """It gives the job back, and the device with it: what is there is for one model at a time."""
    request = inputs.patterns()
    worker = embedded.worker()
    job = embedded.measuring(queue(embedded, request))
    assert job.pid is not None
    orphan = psutil.Process(job.pid)
    worker.kill()
    orphan.wait(15)
    left = embedded.job(job.id)
    assert (left.state, left.attempt) == ("queued", 1)
    assert "was killed" in str(embedded.store.log(job.id)[-1].detail)
    idle = embedded.worker("idle")
    (done,) = embedded.finish([job.id])
    assert (done.state, done.attempt, done.worker) == ("succeeded", 2, "idle")
    # A child without a job goes, too.
    children = embedded.until(lambda: idle.children() or None, 30)
    idle.kill()
    assert psutil.wait_procs(children, 15)[1] == []
    require_clean(embedded, clean([request]))


def test_a_child_that_is_done_when_its_worker_is_killed(embedded: Service, inputs: Inputs) -> None:
    """Nobody takes what it has to tell; the device that it holds is for the next one."""
    worker = embedded.worker()
    job = embedded.measuring(queue(embedded, inputs.patterns()))
    child = psutil.Process(job.pid)
    pause_between_writes(embedded, worker)
    child.resume()
    embedded.when(job.id, lambda job: job.state == "succeeded")
    worker.kill()
    child.wait(15)


def test_a_worker_killed_while_it_publishes_to_a_server(
    on_servers: Service, inputs: Inputs, clean: Clean
) -> None:
    """Its scores are written then, in a transaction that nobody will end."""
    request = inputs.patterns()
    job, at_work = held_by_one_of_two(on_servers, request)
    with publishing_held(on_servers, "UPDATE run") as is_held:
        on_servers.until(is_held, 120)
        at_work.kill_all()
        assert not any(workers.published(on_servers.catalog)["scores"])
    require_second_attempt(on_servers, job, clean([request]))


def test_a_worker_frozen_while_it_publishes_to_a_server(
    on_servers: Service, inputs: Inputs, clean: Clean
) -> None:
    """In the middle of its COPY, with the turn to write: no other waits for it to wake up."""
    request = inputs.patterns()
    job, at_work = held_by_one_of_two(on_servers, request)
    with publishing_held(on_servers, "COPY") as is_held:
        on_servers.until(is_held, 120)
        at_work.pause()
    frozen = time.monotonic()
    on_servers.finish([job.id])
    _log.info("published %.1f s after the other was frozen", time.monotonic() - frozen)
    require_second_attempt(on_servers, job, clean([request]))


def test_a_worker_killed_while_it_publishes_to_a_file(
    embedded: Service, inputs: Inputs, clean: Clean
) -> None:
    """As soon as it writes into the file: readers see all of the run or nothing."""
    request = inputs.patterns()
    job, at_work = held_by_one_of_two(embedded, request)
    file = embedded.catalog.database.path
    assert file is not None
    log = file.with_name(f"{file.name}.wal")
    embedded.until(lambda: True if log.exists() else None, 60, every=0.0005)
    at_work.kill_all()
    rows = workers.published(embedded.catalog)
    assert rows["scores"] in ([], clean([request])["scores"])
    (done,) = embedded.finish([job.id])
    assert (done.state, done.attempt) == ("succeeded", 2)
    require_clean(embedded, clean([request]))


# One job, two workers


def test_two_workers_that_are_told_of_one_job(
    anywhere: Service, inputs: Inputs, clean: Clean
) -> None:
    request = inputs.patterns()
    anywhere.worker("a")
    anywhere.worker("b")
    job_id = queue(anywhere, request)
    app = celery_app(anywhere.catalog.database)
    for _ in range(4):
        nudge(app, anywhere.store, [anywhere.job(job_id)])
    (done,) = anywhere.finish([job_id])
    anywhere.until(lambda: None if any(waiting(app, ["cpu"]).values()) else True, 60)
    assert (done.state, done.attempt) == ("succeeded", 1)
    require_clean(anywhere, clean([request]))
    assert outcomes(anywhere) == ["succeeded"]


def test_a_worker_that_wakes_up_after_its_lease_publishes_nothing(
    anywhere: Service, inputs: Inputs, clean: Clean
) -> None:
    request = inputs.patterns()
    job, at_work = held_by_one_of_two(anywhere, request)
    pause_between_writes(anywhere, at_work)
    anywhere.when(job.id, lambda job: job.attempt == 2)
    at_work.resume()
    anywhere.finish([job.id])
    anywhere.until(lambda: "is dropped" in at_work.log.read_text() or None, 60)
    require_second_attempt(anywhere, job, clean([request]))


# All at once


@pytest.mark.parametrize(
    ("n_models", "n_kills"), [(1, 5), pytest.param(5, 1000, marks=pytest.mark.slow)]
)
def test_workers_that_are_killed_again_and_again(
    anywhere: Service, inputs: Inputs, clean: Clean, tmp_path: Path, n_models: int, n_kills: int
) -> None:
    """Four jobs a model over three workers, one of which dies every few seconds."""
    requests = inputs.many(tmp_path, n_models)
    chance = random.Random(n_models)  # noqa: S311 - no secret
    pool = {name: anywhere.worker(name) for name in ("a", "b", "c")}
    anywhere.scheduler()
    job_ids = [queue(anywhere, request) for request in requests]
    is_over = threading.Event()

    def kill(name: str, what: str) -> None:
        match what:
            case "child" if children := pool[name].children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(children).kill()
            case "worker":
                pool[name].kill()
            case _:
                pool[name].kill_all()
        if not pool[name].is_alive:
            pool[name] = anywhere.worker(name)

    def kill_on() -> None:
        for _ in range(n_kills):
            if is_over.wait(chance.uniform(3, 6)):
                return
            kill(chance.choice(sorted(pool)), chance.choice(["worker", "group", "child"]))

    # The first meets one at work, however quick the others are.
    hit = anywhere.until(lambda: next(iter(anywhere.store.list(states=("running",))), None), 120)
    kill(str(hit.worker), "group")
    killer = threading.Thread(target=kill_on)
    killer.start()
    try:
        done = anywhere.finish(job_ids, 1800)
    finally:
        is_over.set()
        killer.join()
    assert {job.state for job in done} == {"succeeded"}
    assert anywhere.job(hit.id).attempt > 1
    require_clean(anywhere, clean(requests))
