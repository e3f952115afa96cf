"""The Alembic history of the job store, for SQLite and PostgreSQL."""
