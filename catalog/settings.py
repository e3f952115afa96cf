"""The one settings object: environment variables with the prefix `HEADS_`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from catalog.errors import UsageError

_PREFIX = "HEADS_"


class SignIn(StrEnum):
    """Who must sign in to the page."""

    NOBODY = "nobody"
    SUBMITTERS = "submitters"
    """Who queues, cancels and retries jobs."""
    EVERYBODY = "everybody"
    """Who wants to see anything."""


class Settings(BaseSettings):
    """What an operator may set; the command line's options override it."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore")

    database_url: str = Field("duckdb:///heads.duckdb", repr=False)
    """SQLAlchemy URL of the catalog; not shown in `repr`, since it may hold a password."""

    reader_role: str | None = None
    """The role of a PostgreSQL server in which this process reads; None: the URL's own."""

    reader_password: SecretStr | None = None
    """What `heads db reader` lets a role log in with, and `reader_role` logs in with."""

    lock_timeout: float = Field(30.0, ge=0)
    """Seconds to wait for a DuckDB file that another process has open.

    To publish what has been measured, writers wait for ten minutes at least.
    """

    work_dir: Path = platformdirs.user_cache_path("head-catalog")
    """Where unfinished runs keep their layers, and GGUF files their dequantised weights."""

    page_may_submit: bool = False
    """Whether readers of the page may queue, cancel and retry jobs, and change schedules."""

    page_sign_in: SignIn = SignIn.NOBODY
    """Who must sign in to the page, at the OpenID provider that is set below."""

    page_users: Annotated[tuple[str, ...], NoDecode] = ()
    """Who counts once signed in, parted by commas: addresses, all of a domain as `@lab.org`, or `*`
    for whoever the provider knows."""

    page_url: str | None = None
    """What people type to reach the page, without a path; None: this machine's own address."""

    page_cookie_secret: SecretStr | None = None
    """What the page signs its cookies with."""

    page_sign_in_hours: float = Field(24.0, gt=0)
    """After how long one must sign in again."""

    oidc_metadata_url: str | None = None
    """The provider's `https://.../.well-known/openid-configuration`."""

    oidc_client_id: str | None = None
    """What the provider calls this page."""

    oidc_client_secret: SecretStr | None = None
    """What the page shows the provider."""

    oidc_trust_email: bool = False
    """Whether addresses count of which the provider does not say whether they are verified."""

    sql_seconds: float = Field(10.0, gt=0)
    """What a query of the page's SQL console may take."""

    sql_rows: int = Field(10_000, ge=1)
    """How many rows its answer may have."""

    sql_memory: int = Field(512, ge=64)
    """Megabytes that it may use, beside its answer."""

    sql_at_once: int = Field(2, ge=1)
    """How many such queries may run at once; others wait for their turn."""

    broker_url: str | None = Field(None, repr=False)
    """Kombu URL of the broker (redis://..., amqp://...); None: a folder beside a DuckDB file."""

    lease: float = Field(30.0, gt=0)
    """Seconds after which a job whose worker is not heard of is given to another."""

    give_up_after: float = Field(1800.0, ge=0)
    """Seconds since it was first begun before which no job is given up, whatever ends its workers.

    After that it is, where it was begun three times.
    """

    keep_jobs: float | None = Field(None, gt=0)
    """Days after which the scheduler forgets jobs that are over; None: never."""

    gpu_parameters: float = Field(1e9, ge=0)
    """Models with as many go to the queue `gpu` where a worker serves it."""

    allow_pickle: bool = False
    """Whether this worker unpickles weights for jobs that ask for it; can run any code in them."""

    model_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders, parted as in PATH, that jobs may read; none named: all that the worker may."""

    @field_validator("page_users", mode="before")
    @classmethod
    def _users(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [one.strip().lower() for one in value.split(",") if one.strip()]

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [one for one in value.split(os.pathsep) if one] if isinstance(value, str) else value


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
