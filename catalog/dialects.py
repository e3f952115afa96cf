"""What DuckDB needs of SQLAlchemy and Alembic beyond its own dialect.

Imported for its effects, by the engine and by migrations/env.py.
"""

from typing import Any

from alembic.operations.batch import BatchOperationsImpl
from duckdb_sqlalchemy.alembic_impl import DuckDBImpl
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler

_IN_PLACE = {"create_index", "drop_index", "create_column_comment", "create_table_comment"}


class CatalogDuckDBImpl(DuckDBImpl):
    """Rebuilds a table for nearly every change: DuckDB's ALTER can do very little."""

    __dialect__ = "duckdb"

    def requires_recreate_in_batch(self, batch_op: BatchOperationsImpl) -> bool:
        return not all(
            operation[0] in _IN_PLACE or (operation[0] == "add_column" and operation[1][1].nullable)
            for operation in batch_op.batch
        )


@compiles(CreateTable, "duckdb")
def _without_foreign_keys(element: CreateTable, compiler: DDLCompiler, **kw: Any) -> str:
    # DuckDB's foreign keys refuse updates of parents and the delete of children and parent in
    # one transaction; PostgreSQL keeps them, and every test runs there too.
    element.include_foreign_key_constraints = []
    return compiler.visit_create_table(element, **kw)
