"""Runs the job store's history on the connection that `catalog.schema` hands over."""

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.schema import SchemaItem

from catalog.jobs.orm import Base


def include_object(
    item: SchemaItem,  # noqa: ARG001 - Alembic's signature
    name: str | None,
    kind: str,
    reflected: bool,  # noqa: FBT001 - Alembic's signature
    _other: SchemaItem | None,
) -> bool:
    """Leave the catalog's tables, which on a server lie in the same database, to their history."""
    return not (kind == "table" and reflected) or name in Base.metadata.tables


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # A migration that has to wait behind a long query must not make everyone else wait too.
        connection.exec_driver_sql("SET lock_timeout = '10s'")
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=context.config.attributes["version_table"],
        compare_type=True,
        compare_server_default=True,
        render_as_batch=True,
        include_object=include_object,
        # SQLite can, once its driver leaves transactions alone (`catalog.jobs.connections`).
        transactional_ddl=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("heads migrates a live database only; --sql is not supported")
run(context.config.attributes["connection"])
