"""The one settings object: environment variables with the prefix `HEADS_`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an operator may set; the command line's options override it."""

    model_config = SettingsConfigDict(env_prefix="HEADS_", extra="ignore")

    database_url: str = Field("duckdb:///heads.duckdb", repr=False)
    """SQLAlchemy URL of the catalog; not shown in `repr`, since it may hold a password."""

    lock_timeout: float = Field(30.0, ge=0)
    """Seconds to wait for a DuckDB file that another process has open."""
