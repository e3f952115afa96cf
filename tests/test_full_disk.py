"""A real file system that fills up, under a DuckDB catalog."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published
import pytest
import servers
import tiny

import catalog
from catalog import Catalog, copying, publishing
from catalog.database import Database
from catalog.errors import StorageError

Snapshot = Callable[[Catalog], dict[str, Any]]
SIZE = 32 << 20
SCORES = 1_000_000
"""Random ones, some 8 MB."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[servers.Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with servers.small_disk(folder, SIZE) as made:
        yield made


@pytest.fixture
def one(disk: servers.Disk) -> Catalog:
    """A catalog on the disk, with scores."""
    made = catalog.connect(f"duckdb:///{disk.folder / 'heads.duckdb'}", create=True)
    published.publish(made, published.begin(made), published.uniform(0.25))
    return made


def many_scores(database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO score SELECT 1, range, 2, 1, random() FROM range(?)", (SCORES,)
        )
        connection.commit()


def test_what_cannot_be_published_is_told_and_can_be_later(
    disk: servers.Disk, one: Catalog, snapshot: Snapshot
) -> None:
    run_id = published.begin(one, "k2")
    before = snapshot(one)
    disk.fill()
    for attempt in (
        lambda: published.publish(one, run_id, published.uniform(0.5)),
        lambda: publishing.fail(one.database, run_id, "no room"),
        lambda: published.begin(one, "k3"),
    ):
        with pytest.raises(StorageError, match=r"(?i)no space left|full"):
            attempt()
    assert snapshot(one) == before, "and it can still be read"
    disk.empty()
    published.publish(one, run_id, published.uniform(0.5))
    assert one.sql("SELECT DISTINCT value FROM scores").rows() == [{"value": 0.5}]


def test_an_ingest_ends_with_the_reason_and_its_run_is_closed(
    disk: servers.Disk, one: Catalog, tmp_path: Path, snapshot: Snapshot
) -> None:
    checkpoint = tiny.save(tmp_path / "tiny", "llama")
    url = one.database.url.render_as_string()
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import catalog, servers
        from pathlib import Path
        from ingest.progress import Silence
        from ingest.request import IngestRequest
        from ingest.run import ingest
        class Filling(Silence):
            def stage(self, text):
                if text.startswith("publishing"):
                    servers.Disk(Path({str(disk.folder)!r})).fill()
        request = IngestRequest(model={str(checkpoint)!r}, suites=("weights",))
        try:
            ingest(catalog.connect({url!r}), request, Filling())
        except catalog.HeadsError as error:
            print(type(error).__name__, error)
        """
    )
    before = snapshot(one)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("StorageError"), done.stdout
    after = snapshot(one)
    assert {k: v for k, v in after.items() if k != "runs"} == {
        k: v for k, v in before.items() if k != "runs"
    }
    disk.empty()
    [run] = catalog.connect(url).sql("SELECT status, error FROM runs WHERE model = 'tiny'")
    assert run["status"] == "failed"
    assert run["error"]
    from ingest.request import IngestRequest
    from ingest.run import ingest

    ingest(one, IngestRequest(model=str(checkpoint), suites=("weights",)))
    assert one.sql("SELECT * FROM scores WHERE model = 'tiny'")


def test_a_copy_onto_it_leaves_nothing(
    disk: servers.Disk, tmp_path: Path, snapshot: Snapshot
) -> None:
    source = catalog.connect(f"duckdb:///{tmp_path / 'from.duckdb'}", create=True)
    published.publish(source, published.begin(source), published.uniform(0.25))
    many_scores(source.database)
    target = Database(f"duckdb:///{disk.folder / 'to.duckdb'}", lock_timeout=10)
    disk.fill(leaving=3 << 20)
    with pytest.raises(StorageError, match=r"(?i)no space left|full"):
        copying.copy(source.database, target)
    assert not target.exists
    assert {path.name for path in disk.folder.iterdir()} <= {"filler", "to.duckdb.lock"}
    disk.empty()
    copying.copy(source.database, target)
    assert snapshot(Catalog(target)) == snapshot(source)
