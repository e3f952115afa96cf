"""A whole catalog from one database into another, on DuckDB or PostgreSQL each.

The source is only read, in one snapshot. The target comes to be as a whole, once both databases
have counted and summed up their tables and agree: a DuckDB file is made beside and renamed, on
PostgreSQL all is one transaction.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from sqlalchemy import Connection, func, inspect, select, text, update
from sqlalchemy.orm import Session

from catalog import bulk, checksums, pattern_files, pattern_rows, publishing, schema
from catalog.checksums import Checksum
from catalog.database import LOCK_SUFFIX, Database
from catalog.errors import StorageError, UsageError
from catalog.orm import AttentionPattern, Base, Metric, Prompt, Run, Score, table
from catalog.pattern_rows import Row

CONTENTS = "pattern contents"
"""What stands beside the tables' names: the bytes of stored patterns, read and hashed again."""

_SUFFIX = ".copying"
_PLACED = {"file", "file_offset", "content"}
"""Columns that say where a pattern's bytes are, which is each database's own."""
_CONTENT_BYTES = 64 << 20
"""Of patterns that are held at once, and lie in one side file."""
Tell = Callable[[str, int, int], None]
"""Told of a table's name, its rows copied so far, and all it has."""


@dataclass(frozen=True)
class CopiedTable:
    """A table as the source has it, and as it was read back from the target."""

    name: str
    source: Checksum
    target: Checksum


@dataclass(frozen=True)
class Copied:
    """What a copy came to."""

    tables: Sequence[CopiedTable]
    closed_runs: int
    """Runs under way in the source, which no process will end in the target."""


def copy(source: Database, target: Database, tell: Tell = lambda *_: None) -> Copied:
    """Copy a catalog.

    Writers of a DuckDB source wait until it is read; those of PostgreSQL do not. Runs that are
    under way stand as failed in the target.

    Args:
        source: A catalog of this release.
        target: Not there yet, or without a row.
        tell: Of the progress.

    Raises:
        UsageError: If the target holds a catalog, or is the source.
        SchemaError: If the source is no catalog of this release.
        StorageError: If the target cannot be written, or differs from the source when read back;
            it is as it was before then.
    """
    if source.url == target.url:
        raise UsageError(f"{target.name} is the source itself; name another target")
    with source.reading() as connection:
        if not source.is_duckdb:
            connection.execution_options(isolation_level="REPEATABLE READ")
            _be_patient(connection)
        schema.require_current(connection, source.name)
        with _replaced(target) if target.is_duckdb else contextlib.nullcontext(target) as made:
            _require_empty(made)
            schema.upgrade(made)
            with made.transaction() as session:
                if not made.is_duckdb:
                    _be_patient(session.connection())
                # Another copy may have been as quick, and is through now.
                _require_no_rows(session.connection(), target)
                return _fill(source, connection, made, session, tell)


@contextlib.contextmanager
def _replaced(target: Database) -> Iterator[Database]:
    """A new DuckDB file, which takes the target's place when the block ends well."""
    assert target.path is not None  # noqa: S101 - narrows the type
    path = target.path.with_name(target.path.name + _SUFFIX)
    made = Database(f"duckdb:///{path}", lock_timeout=target.lock_timeout)
    with target.alone() as held:
        if held.exists:
            _require_empty(held)
        _discard(made)
        try:
            yield made
            _put_in_place(made, target)
        finally:
            _discard(made)


def _put_in_place(made: Database, target: Database) -> None:
    """Side files first: a catalog must not name what is not there."""
    assert made.path is not None  # noqa: S101 - narrows the type
    assert target.path is not None  # noqa: S101 - narrows the type
    try:
        files = pattern_files.folder_of(made)
        if files.is_dir():
            pattern_files.move(files, pattern_files.folder_of(target))
        made.path.replace(target.path)
        pattern_files.sync_folder(target.path.parent)
    except OSError as error:
        raise StorageError(f"{target.name} cannot be written: {error.strerror}") from error


def _discard(made: Database) -> None:
    """Remove what a copy has made, or one that was killed has left."""
    assert made.path is not None  # noqa: S101 - narrows the type
    for suffix in ("", ".wal", LOCK_SUFFIX):
        made.path.with_name(made.path.name + suffix).unlink(missing_ok=True)
    shutil.rmtree(f"{made.path}.tmp", ignore_errors=True)
    shutil.rmtree(pattern_files.folder_of(made), ignore_errors=True)


def _be_patient(connection: Connection) -> None:
    """While one database works for minutes, the other's transaction has nothing to do."""
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {name} = 0")


def _require_empty(target: Database) -> None:
    if target.exists:
        with target.writing() as connection:
            _require_no_rows(connection, target)


def _require_no_rows(connection: Connection, target: Database) -> None:
    there = set(inspect(connection).get_table_names())
    for one in map(table, _entities()):
        if one.name in there and connection.execute(select(one.c[0]).limit(1)).first():
            raise UsageError(
                f"{target.name} holds a catalog already (its table {one.name} has rows); "
                "copy into a database that is new or empty"
            )


def _fill(
    source: Database, connection: Connection, target: Database, session: Session, tell: Tell
) -> Copied:
    for entity in _entities():
        if entity is Score and not target.is_duckdb:
            for metric_id in session.scalars(select(Metric.id)):
                publishing.add_partition(session, metric_id)
        total = connection.scalar(select(func.count()).select_from(table(entity))) or 0
        done = 0
        tell(table(entity).name, done, total)
        with Session(connection) as reading:
            for count in (
                _copy_patterns(source, reading, target, session)
                if entity is AttentionPattern
                else _copy_rows(connection, session, entity)
            ):
                done += count
                tell(table(entity).name, done, total)
        _go_on_counting(session, entity)
    session.flush()
    there, here = (source, connection), (target, session.connection())
    tables = []
    for entity in _entities():
        name = table(entity).name
        tell(f"reading back {name}", 0, 0)
        tables.append(CopiedTable(name, *(_checksum(one, entity) for _, one in (there, here))))
    tell(f"reading back {CONTENTS}", 0, 0)
    tables.append(CopiedTable(CONTENTS, *(_content_checksum(*side) for side in (there, here))))
    differing = [one for one in tables if one.source != one.target]
    if differing:
        told = "; ".join(f"{one.name}: {one.source} became {one.target}" for one in differing)
        raise StorageError(f"{target.name} is not what {source.name} is, and was undone: {told}")
    return Copied(tables, _close_runs(session, source))


def _copy_rows(connection: Connection, session: Session, entity: type[Base]) -> Iterator[int]:
    for batch in bulk.read(connection, entity, _columns(entity)):
        bulk.insert(session.connection(), table(entity), batch)
        yield batch.num_rows


def _copy_patterns(
    source: Database, reading: Session, target: Database, session: Session
) -> Iterator[int]:
    """Copy rows and their bytes, some at a time, each against its own hash."""
    for prompt_id in reading.scalars(select(Prompt.id).order_by(Prompt.id)).all():
        for some in _in_portions(pattern_rows.on_prompt(reading, prompt_id)):
            contents = pattern_rows.contents(reading, source, some)
            facts = [
                {name: getattr(row, name) for name in _columns(AttentionPattern)} for row in some
            ]
            named = {f"{row.model_id}.{row.name}": contents[row.head_id] for row in some}
            pattern_rows.put(session, target, facts, named)
            yield len(some)


def _in_portions(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one run each, as side files have them, and of no more bytes than we hold at once."""
    for _, of_run in groupby(sorted(rows, key=lambda row: row.run_id), lambda row: row.run_id):
        portion: list[Row] = []
        for row in of_run:
            if portion and sum(one.n_bytes for one in portion) + row.n_bytes > _CONTENT_BYTES:
                yield portion
                portion = []
            portion.append(row)
        yield portion


def _go_on_counting(session: Session, entity: type[Base]) -> None:
    """Let the next row that the target makes itself have the next id."""
    counted = table(entity).autoincrement_column
    if counted is None:
        return
    last = session.scalar(select(func.max(counted))) or 0
    sequence = f"{counted.table.name}_{counted.name}_seq"
    if not last:
        return
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.setval(sequence, last)))
    else:
        # DuckDB sets no sequence, and drops none that a column counts by.
        session.execute(
            text("SELECT max(nextval(:sequence)) FROM range(:last)"),
            {"sequence": sequence, "last": last},
        )


def _checksum(connection: Connection, entity: type[Base]) -> Checksum:
    return checksums.of_table(connection, table(entity), _columns(entity))


def _content_checksum(database: Database, connection: Connection) -> Checksum:
    """Of the bytes of all stored patterns, wherever they are."""
    count, total = 0, 0
    with Session(connection) as session:
        for prompt_id in session.scalars(select(Prompt.id)).all():
            for some in _in_portions(pattern_rows.on_prompt(session, prompt_id)):
                for content in pattern_rows.contents(session, database, some).values():
                    count += 1
                    total += checksums.first_bytes(pattern_files.checksum(content))
    return checksums.of_sum(count, total)


def _close_runs(session: Session, source: Database) -> int:
    """Fail the runs that were under way: what they measure goes into the source alone."""
    closed = session.execute(
        update(Run)
        .where(Run.status == "running")
        .values(
            status="failed",
            error=f"under way in {source.name} when this copy of it was made",
            finished_at=datetime.now(UTC),
        )
        .returning(Run.id)
        .execution_options(synchronize_session=False)
    )
    return len(closed.all())


def _entities() -> list[type[Base]]:
    """What is copied, each after what it refers to."""
    classes = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers}
    copied = [one for one in Base.metadata.sorted_tables if one.info.get("is_copied", True)]
    return [classes[one] for one in copied]


def _columns(entity: type[Base]) -> list[str]:
    return [one.name for one in table(entity).columns if one.name not in _PLACED]
