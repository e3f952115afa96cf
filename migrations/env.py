"""Runs the history on the connection that `catalog.schema` hands over."""

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.schema import SchemaItem

import catalog.dialects  # noqa: F401 - registers what DuckDB needs
from catalog.jobs.orm import Base as JobsBase
from catalog.orm import Base
from catalog.schema import JOBS

PARTITION_PREFIX = "score_metric_"
OF_JOBS = {JOBS.version_table, *JobsBase.metadata.tables}
"""Tables of the other history, which on a server lie in the same database."""


def include_object(
    item: SchemaItem,
    name: str | None,
    kind: str,
    reflected: bool,  # noqa: FBT001 - Alembic's signature
    _other: SchemaItem | None,
) -> bool:
    """Leave out of autogenerate what one database has by design and the other has not."""
    dialect = context.get_context().dialect.name
    if kind == "foreign_key_constraint":
        return dialect != "duckdb"
    if kind == "table" and reflected and name is not None:
        return name not in OF_JOBS and not name.startswith(PARTITION_PREFIX)
    return dialect in item.info.get("dialects", (dialect,))


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # A migration that has to wait behind a long query must not make everyone else wait too.
        connection.exec_driver_sql("SET lock_timeout = '10s'")
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        render_as_batch=True,
        include_object=include_object,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("heads migrates a live database only; --sql is not supported")
run(context.config.attributes["connection"])
