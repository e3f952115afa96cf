"""What can go wrong, each with the exit code that the command line gives for it.

Every message is one sentence that names the thing, what was expected and what to do.
"""


class HeadsError(Exception):
    """Anything that a user can put right; shown without a traceback."""

    exit_code = 1


class UsageError(HeadsError):
    """An argument that cannot be meant as it was given."""

    exit_code = 2


class ModelError(HeadsError):
    """A model that cannot be read or is not supported."""

    exit_code = 3


class InputError(HeadsError):
    """A probe, relation set or label file that cannot be used."""

    exit_code = 4


class SchemaError(HeadsError):
    """A database whose schema is absent, older or newer than this release's."""

    exit_code = 5


class UnreachableError(SchemaError):
    """A database server that does not answer, and may do so later."""


class LockedError(HeadsError):
    """A DuckDB file that another process kept for longer than we wait."""

    exit_code = 6


class QueryError(HeadsError):
    """SQL that is refused or that the database could not run."""

    exit_code = 7


class StorageError(HeadsError):
    """A database that cannot be written: a full disk, a read-only folder, a lost server."""

    exit_code = 9


class LeaseLost(HeadsError):  # noqa: N818 - an outcome that every holder of a lease must expect
    """A job that is no longer its worker's: its lease ran out, and it was given to another."""


class MissingExtraError(HeadsError):
    """An optional part of the distribution that is not installed."""

    exit_code = 8
