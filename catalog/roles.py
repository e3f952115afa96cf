"""Who may read a catalog on PostgreSQL: a role for pages and people that cannot write.

It reads the views, and of the tables only those that our own reading paths name; it makes nothing,
and its transactions are read-only and end in time. A role can unset what is set for it, but not
get what is granted to nobody: so where a superuser asks, functions that wait, lock, write or run
SQL out of texts are taken from everybody but the catalog's owner.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from catalog import orm
from catalog.database import Database
from catalog.errors import StorageError, UsageError
from catalog.jobs.orm import Base as Jobs
from catalog.schema import CATALOG, JOBS

_READ_AS_TABLES = (
    orm.AttentionPattern,
    orm.Head,
    orm.Measured,
    orm.Metric,
    orm.Model,
    orm.Probe,
    orm.Prompt,
    orm.PromptToken,
    orm.Run,
    orm.RunProbe,
    orm.Score,
    orm.State,
)
"""What `catalog.patterns` reads, what an ingest asks before it measures, what a head's place among
all others is counted in, and what tells whether anything was written."""

_SETTINGS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
_SUPERUSER_SETTINGS = {"temp_file_limit": "4GB"}
_TAKEN = (
    "set_config|pg_sleep(_for|_until)?|pg_notify|lo_.*|loread|lowrite|pg_(try_)?advisory_.*|"
    "pg_(cancel|terminate)_backend|pg_export_snapshot|pg_logical_emit_message|"
    "(query|cursor|table|schema|database)_to_xml.*"
)
"""A regular expression of functions: they change settings, wait, signal, write or lock, end other
sessions of the same role, or run SQL that comes as a text."""

_OURS = "n.nspname = current_schema() AND c.relowner = v.relowner"
_READABLE = f"""
    SELECT c.relname
    FROM pg_class v
    JOIN pg_namespace n ON n.oid = v.relnamespace
    JOIN pg_class c ON c.relnamespace = n.oid
    WHERE v.relname = '{CATALOG.version_table}' AND {_OURS}
      AND (c.relkind = 'v' OR c.relname = ANY(%s))
    ORDER BY c.relname
"""  # noqa: S608 - our own names
_READERS = f"""
    SELECT DISTINCT pg_get_userbyid(a.grantee)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN aclexplode(c.relacl) a
    WHERE n.nspname = current_schema() AND c.relname = '{CATALOG.version_table}'
      AND a.grantee NOT IN (0, c.relowner) AND a.privilege_type = 'SELECT'
"""  # noqa: S608 - our own names
_MIGHTY = """
    SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
           OR EXISTS (SELECT 1 FROM pg_auth_members WHERE member = r.oid)
           OR EXISTS (SELECT 1 FROM pg_class c WHERE c.relowner = r.oid)
    FROM pg_roles r
    WHERE rolname = %s
"""
_HERE = """
    SELECT current_database(), current_schema(), pg_get_userbyid(c.relowner),
           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    FROM pg_class c
    WHERE c.oid = to_regclass(%s)
"""
_FUNCTIONS = f"""
    SELECT p.oid::regprocedure::text
    FROM pg_proc p
    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ '^({_TAKEN})$'
    ORDER BY 1
"""  # noqa: S608 - our own words


@dataclass(frozen=True)
class Reader:
    """What became of a role."""

    is_new: bool
    is_hardened: bool
    """Whether the functions that only a superuser can take from it are taken."""


def let_read(database: Database, role: str, password: str | None = None) -> Reader:
    """Let a role read the catalog and the state of its jobs, and write nothing.

    Args:
        database: On a server, at this release's schema.
        role: Made if there is none.
        password: What it logs in with from now on; None leaves it as it is. The server is told
            its hash only, so that no log of statements has it.

    Raises:
        UsageError: If the catalog is a file, or the role may do more than log in.
        StorageError: If the server does not let us.
    """
    if database.is_duckdb:
        raise UsageError(f"{database.name} is a file; who may read it, its permissions say")
    if role == database.url.username:
        raise UsageError(f"{role!r} is the role that writes the catalog; name another")
    with database.writing() as connection:
        try:
            server = _Server(connection)
            is_mighty = next(iter(server.column(_MIGHTY, role)), None)
            if is_mighty:
                raise UsageError(
                    f"{role!r} is more than a reader: it has attributes, is a member of other "
                    "roles, or owns tables; name a role that is new"
                )
            if is_mighty is None:
                server.run("CREATE ROLE {} LOGIN", role)
            if password is not None:
                server.set_password(role, password)
            _grant(server, role)
            _limit(server, role)
            connection.commit()
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise StorageError(
                f"{role!r} was not made a reader of {database.name}: {reason}; "
                "it takes a role that owns the catalog and may make roles"
            ) from None
    return Reader(is_new=is_mighty is None, is_hardened=server.is_superuser)


def renew(database: Database) -> list[str]:
    """Let readers read the views that a migration has made anew; returns the roles."""
    if database.is_duckdb:
        return []
    with database.writing() as connection:
        server = _Server(connection)
        roles = server.column(_READERS)
        for role in roles:
            _grant(server, role)
        connection.commit()
    return roles


class _Server:
    """Statements with names in them, which no driver binds."""

    def __init__(self, connection: Connection) -> None:
        from psycopg import sql  # noqa: PLC0415 - of an extra, like the server itself

        # Without this option the driver would take a percent sign in a name for a placeholder.
        self._connection = connection.execution_options(no_parameters=True)
        self._raw: Any = connection.connection.driver_connection
        self._sql = sql
        self.database, self.schema, self.owner, self.is_superuser = connection.exec_driver_sql(
            _HERE, (CATALOG.version_table,)
        ).one()

    def run(self, statement: str, *names: str) -> None:
        """Run a statement with names for its braces."""
        filled = self._sql.SQL(statement).format(*map(self._sql.Identifier, names))
        self._connection.exec_driver_sql(filled.as_string(self._raw))

    def column(self, query: str, *parameters: Any) -> list[Any]:
        return list(self._connection.exec_driver_sql(query, parameters).scalars())

    def set_password(self, role: str, password: str) -> None:
        hashed = self._raw.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        )
        self.run(f"ALTER ROLE {{}} PASSWORD '{hashed.decode()}'", role)


def _grant(server: _Server, role: str) -> None:
    tables = [orm.table(entity).name for entity in _READ_AS_TABLES]
    names = [*tables, *Jobs.metadata.tables, CATALOG.version_table, JOBS.version_table]
    server.run("REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM {}", server.schema, role)
    for name in server.column(_READABLE, names):
        server.run("GRANT SELECT ON {}.{} TO {}", server.schema, name, role)
    server.run("GRANT CONNECT ON DATABASE {} TO {}", server.database, role)
    server.run("GRANT USAGE ON SCHEMA {} TO {}", server.schema, role)
    # What everybody may do a reader may as well: hence the owner alone.
    server.run("REVOKE CREATE ON SCHEMA {} FROM PUBLIC", server.schema)
    server.run("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC", server.database)
    server.run("GRANT TEMPORARY ON DATABASE {} TO {}", server.database, server.owner)


def _limit(server: _Server, role: str) -> None:
    settings = _SETTINGS | (_SUPERUSER_SETTINGS if server.is_superuser else {})
    for name, value in settings.items():
        server.run(
            f"ALTER ROLE {{}} IN DATABASE {{}} SET {name} = '{value}'", role, server.database
        )
    if server.is_superuser:
        # As PostgreSQL spells them, with their arguments: no names to be quoted.
        functions = ", ".join(server.column(_FUNCTIONS))
        server.run(f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        server.run(f"GRANT EXECUTE ON FUNCTION {functions} TO {{}}", server.owner)
