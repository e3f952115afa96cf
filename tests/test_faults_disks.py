"""Disks fill up in the middle of a job: it waits for room, and ends as after one clean run."""

import re
from pathlib import Path

import faults
import pytest
import servers
import workers
from faults import Clean, Inputs, Serve, queue, require_clean
from published import begin, publish, uniform
from workers import Service

import catalog
from catalog import Catalog
from catalog.errors import StorageError

inputs, clean = faults.inputs, faults.clean
postgres, valkey, serve = faults.postgres, faults.valkey, faults.serve

_SHORT = re.compile(r"waiting for the database: .*no space left", re.IGNORECASE)


def test_a_disk_that_is_full(serve: Serve, tmp_path: Path, inputs: Inputs, clean: Clean) -> None:
    """The catalog's, and its jobs'."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with (
        servers.small_disk(folder, 64 << 20) as disk,
        serve(f"duckdb:///{folder / 'heads.duckdb'}", None) as service,
    ):
        _require_to_wait_for_room(service, disk, inputs, clean)


def test_a_servers_disk_that_is_full(
    serve: Serve,
    postgres: servers.PostgreSQL,
    valkey: servers.Valkey,
    inputs: Inputs,
    clean: Clean,
) -> None:
    """PostgreSQL's, with the catalog and its jobs."""
    with (
        postgres.database_on_a_small_disk(128 << 20) as (url, disk),
        serve(servers.over_tcp(url, postgres.port), valkey.url) as service,
    ):
        _require_to_wait_for_room(service, disk, inputs, clean)


def _require_to_wait_for_room(
    service: Service, disk: servers.Disk, inputs: Inputs, clean: Clean
) -> None:
    requests = [inputs.weights(), inputs.patterns()]
    service.scheduler()
    worker = service.worker()
    service.finish([queue(service, requests[0])])
    before = _results(service.catalog)
    job = service.measuring(queue(service, requests[1]))
    disk.fill()
    service.until(lambda: _SHORT.search(worker.log.read_text()), 120)
    assert _results(service.catalog) == before
    disk.empty()
    (done,) = service.finish([job.id])
    # The job store has no room either: the lease may run out meanwhile.
    assert done.state == "succeeded"
    require_clean(service, clean(requests))


def _results(one: Catalog) -> dict[str, list[str]]:
    """All that readers see, but for the probes: a run names its own when it begins."""
    return {view: rows for view, rows in workers.published(one).items() if view != "probes"}


def test_a_publication_without_room(tmp_path: Path) -> None:
    with servers.small_disk(tmp_path, 16 << 20) as disk:
        one = catalog.connect(f"duckdb:///{tmp_path / 'heads.duckdb'}", create=True)
        run_id = begin(one)
        before = workers.published(one)
        disk.fill()
        with pytest.raises(StorageError, match=r"as it was before: .*No space left on device"):
            publish(one, run_id, uniform(0.5))
        assert workers.published(one) == before
        disk.empty()
        publish(one, run_id, uniform(0.5))
        assert len(one.sql("SELECT * FROM scores")) == 12
