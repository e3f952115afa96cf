"""Rows per second into both databases: `python -m benchmarks.writing`.

Scores by `catalog.bulk`, which publications use (Arrow on DuckDB, COPY on PostgreSQL), against the
ORM and the driver's executemany, each in a transaction of its own on the same tables.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

import catalog
from catalog import bulk, publishing
from catalog.database import Database
from catalog.orm import Metric, Score, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import servers

COLUMNS = ("metric_id", "head_id", "probe_id", "run_id", "value")
Way = Callable[[Session, pa.Table], object]


def by_bulk(session: Session, rows: pa.Table) -> None:
    bulk.insert(session.connection(), table(Score), rows)


def by_orm(session: Session, rows: pa.Table) -> None:
    session.execute(insert(Score), rows.to_pylist())


def by_executemany(session: Session, rows: pa.Table) -> None:
    connection = session.connection()
    mark = "?" if connection.dialect.name == "duckdb" else "%s"
    into = f"INSERT INTO score ({', '.join(COLUMNS)}) VALUES ({', '.join([mark] * 5)})"  # noqa: S608
    connection.exec_driver_sql(into, [tuple(row.values()) for row in rows.to_pylist()])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rows", type=int, default=500_000, help="For `bulk`.")
    arguments.add_argument("--few", type=int, default=20_000, help="For the slow ways.")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, servers.postgresql() as server:
        for url in (f"duckdb:///{folder}/heads.duckdb", server.new_database()):
            _compare(url, given.rows, given.few)


def _compare(url: str, many: int, few: int) -> None:
    database = catalog.connect(url, create=True).database
    rates = {}
    for name, way, count in (
        ("bulk", by_bulk, many),
        ("ORM", by_orm, few),
        ("executemany", by_executemany, few // 4 if database.is_duckdb else few),
    ):
        _prepare(database)
        rates[name] = count / _seconds(database, way, _rows(count))
    kind = "DuckDB, Arrow" if database.is_duckdb else "PostgreSQL, COPY"
    listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    print(f"{kind}: rows/s by {listed}; bulk is", end=" ")
    print(
        *(f"{rates['bulk'] / rates[name]:.0f}x {name}" for name in ("ORM", "executemany")), sep=", "
    )


def _prepare(database: Database) -> None:
    """An empty table, with a partition on a server."""
    with database.transaction() as session:
        session.execute(text("DELETE FROM score"))
        if session.get(Metric, 1) is None:
            facts = dict.fromkeys(("name", "family", "suite", "unit", "description", "source"), "x")
            session.add(Metric(id=1, version=1, **facts))
            session.flush()
            if not database.is_duckdb:
                publishing.add_partition(session, 1)


def _seconds(database: Database, way: Way, rows: pa.Table) -> float:
    """With the commit, which is when the rows are kept."""
    with database.writing() as connection, Session(connection) as session:
        begun = time.perf_counter()
        way(session, rows)
        session.commit()
        return time.perf_counter() - begun


def _rows(count: int) -> pa.Table:
    drawn = random.Random(0)  # noqa: S311 - no secret
    ones = pa.repeat(pa.scalar(1, pa.int32()), count)
    heads = pa.array(range(count), pa.int32())
    values = pa.array([drawn.random() for _ in range(count)])
    return pa.table([ones, heads, ones, ones, values], names=COLUMNS)


if __name__ == "__main__":
    main()
