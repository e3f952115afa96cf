"""The one settings object: environment variables with the prefix `HEADS_`."""

from pathlib import Path

import platformdirs
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from catalog.errors import UsageError

_PREFIX = "HEADS_"


class Settings(BaseSettings):
    """What an operator may set; the command line's options override it."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore")

    database_url: str = Field("duckdb:///heads.duckdb", repr=False)
    """SQLAlchemy URL of the catalog; not shown in `repr`, since it may hold a password."""

    lock_timeout: float = Field(30.0, ge=0)
    """Seconds to wait for a DuckDB file that another process has open.

    To publish what has been measured, writers wait for ten minutes at least.
    """

    work_dir: Path = platformdirs.user_cache_path("head-catalog")
    """Where unfinished runs keep their layers, and GGUF files their dequantised weights."""


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        UsageError: If a variable cannot be meant; names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = f"{_PREFIX}{'_'.join(map(str, first['loc'])).upper()}"
        raise UsageError(f"{name} is not as expected: {first['msg']}") from None
