"""One DuckDB file, several processes: they wait for each other, and say for whom."""

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import published
import pytest
from sqlalchemy.exc import OperationalError

import catalog
from catalog import Catalog
from catalog.database import Database
from catalog.errors import LockedError, SchemaError, StorageError, UsageError

HOLD = """
    import sys, time, duckdb
    connection = duckdb.connect({path!r})
    print("held", flush=True)
    time.sleep({seconds})
"""


def _holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    program = textwrap.dedent(HOLD.format(path=str(path), seconds=seconds))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


@pytest.fixture
def filled(duckdb_url: str) -> Catalog:
    one = catalog.connect(duckdb_url, create=True)
    published.publish(one, published.begin(one), published.uniform(0.25))
    return one


def test_a_locked_file_is_waited_for_and_its_holder_named(filled: Catalog) -> None:
    path = filled.database.path
    assert path is not None
    holder = _holder(path, 60)
    try:
        impatient = Database(f"duckdb:///{path}", lock_timeout=0.5)
        for side in (impatient.reading, impatient.writing):
            with (
                pytest.raises(LockedError, match=rf"in use by .*python.*process {holder.pid}"),
                side(),
            ):
                pass
    finally:
        holder.kill()
        holder.wait()
    assert len(filled.sql("SELECT * FROM scores")) == 12


def test_one_of_our_own_readers_is_named_too(filled: Catalog) -> None:
    url = filled.database.url.render_as_string()
    program = (
        "import time, catalog\n"
        f"with catalog.connect({url!r}).database.reading():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    reader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline().strip() == "held"
        with (
            pytest.raises(LockedError, match=rf"in use by .*process {reader.pid}"),
            Database(url, lock_timeout=0.5).writing(),
        ):
            pass
    finally:
        reader.kill()
        reader.wait()


def test_a_file_that_is_freed_in_time_is_read(filled: Catalog) -> None:
    path = filled.database.path
    assert path is not None
    with _holder(path, 1):
        patient = Catalog(Database(f"duckdb:///{path}", lock_timeout=30))
        assert len(patient.sql("SELECT * FROM scores")) == 12


def test_readers_and_writers_of_one_process_wait_for_each_other(filled: Catalog) -> None:
    failures: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(5):
                assert len(filled.sql("SELECT * FROM scores")) == 12
        except Exception as error:  # noqa: BLE001 - counted
            failures.append(error)

    def write(name: str) -> None:
        try:
            for key in range(3):
                run_id = published.begin(filled, f"{name}{key}")
                published.publish(filled, run_id, published.uniform(0.5))
        except Exception as error:  # noqa: BLE001 - counted
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    threads += [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_two_ingests_a_reader_and_sql_wait_and_see_no_error() -> None:
    """The benchmark of two minutes, for some seconds; it counts half a run seen as an error too."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.concurrency", "--seconds", "6", "--json"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert [(one["role"], one["errors"]) for one in told] == [
        (role, []) for role in ("ingest-1", "ingest-2", "reader", "sql")
    ]
    for one in told:
        assert one["rounds"] >= 1
        waits = one["read_waits"] + one["write_waits"]
        assert waits
        assert max(waits) < 30, "which is when one gives up"


def test_a_full_disk_is_told_and_leaves_the_catalog_as_it_was(
    filled: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that DuckDB raised on a full tmpfs, raised here in the middle of a publication."""
    full = OperationalError("COMMIT", {}, Exception("No space left on device"))

    def fail(*_: object) -> None:
        raise full

    run_id = published.begin(filled, "next")
    monkeypatch.setattr("catalog.publishing.bulk.insert", fail)
    with pytest.raises(StorageError, match="as it was before: No space left on device"):
        published.publish(filled, run_id, published.uniform(0.5))
    monkeypatch.undo()
    assert filled.sql("SELECT DISTINCT value FROM scores").rows() == [{"value": 0.25}]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be used"):
        catalog.connect(f"duckdb:///{tmp_path / 'file' / 'heads.duckdb'}", create=True)


def test_a_catalog_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"there is no catalog at .*heads ingest"):
        catalog.connect(f"duckdb:///{tmp_path / 'none.duckdb'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "heads.duckdb"
    path.write_text("this is a letter " * 1000)
    with pytest.raises(SchemaError, match="cannot be opened as a DuckDB file"):
        catalog.connect(f"duckdb:///{path}")
    assert path.read_text().startswith("this is a letter")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "is no database URL"),
        ("sqlite:///x.db", "'sqlite' is not supported"),
        ("duckdb:///:memory:", "names no file"),
    ],
)
def test_urls_that_cannot_be_meant(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        catalog.connect(url)


def test_a_password_is_never_shown() -> None:
    url = "postgresql+psycopg://me:secret@localhost:1/heads"
    assert "secret" not in Database(url, lock_timeout=1).name
    with pytest.raises(SchemaError) as caught:
        catalog.connect(url)
    assert "secret" not in str(caught.value)
    assert "cannot be reached" in str(caught.value)
