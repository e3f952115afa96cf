"""One Alembic history of the catalog, for DuckDB and PostgreSQL."""
