"""Who may change anything from the page: what the operator allows, and whom the provider names."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from catalog.errors import HeadsError, MissingExtraError, UsageError
from catalog.settings import Settings, SignIn

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANYBODY = "page"
"""Whom a job is of where nobody signs in."""
_SHORTEST_SECRET = 32
"""Characters."""
_METADATA = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
_PACKAGES = ("authlib", "httpx")
_SAFE = {("https", False), ("https", True), ("http", True)}
"""Schemes, and whether to this machine."""
_HOUR = 3600.0
_AHEAD = 300.0
"""Seconds that a provider's clock may be ahead of ours."""


class NotAllowedError(HeadsError):
    """A reader of the page who may not do that; says what would change it."""


@dataclass(frozen=True)
class Permission:
    """What a reader of the page may do, now."""

    by: str | None = None
    """Whom jobs are of; None where the reader may change nothing."""
    refusal: str | None = None
    """Why not, in a sentence with what to do."""
    who: str | None = None
    """Who is signed in; None where nobody is."""
    may_see: bool = True
    can_sign_in: bool = False
    """Whether signing in may change this."""

    def require(self) -> str:
        """Whom the jobs will be of.

        Raises:
            NotAllowedError: If the reader may change nothing.
        """
        if self.by is None:
            raise NotAllowedError(self.refusal or "")
        return self.by


def permission(settings: Settings, claims: Mapping[str, Any]) -> Permission:
    """What a reader may do.

    Args:
        settings: What the operator allows.
        claims: Of the reader's ID token, which was verified; none where nobody is signed in.
    """
    if settings.page_sign_in is SignIn.NOBODY:
        return _as_operated(settings, by=_ANYBODY, who=None)
    everybody = settings.page_sign_in is SignIn.EVERYBODY
    if not claims or not _is_fresh(settings, claims):
        may_sign_in = everybody or settings.page_may_submit
        return Permission(
            refusal="Sign in to do that." if settings.page_may_submit else _off(),
            may_see=not everybody,
            can_sign_in=may_sign_in,
        )
    address = _address(settings, claims)
    who = address or f"{claims.get('sub')} of {claims.get('iss')}"
    if not _is_among(settings.page_users, address):
        told = str(claims.get("email") or claims.get("sub"))
        why = (
            "is not among those whom this page serves"
            if address or not claims.get("email")
            else "is an address that the provider does not call verified"
        )
        refusal = f"You are signed in, but {told} {why}; ask who runs this page (HEADS_PAGE_USERS)."
        return Permission(refusal=refusal, who=told, may_see=not everybody)
    return _as_operated(settings, by=who, who=who)


def secrets(settings: Settings, *, port: int, address: str = LOOPBACK[1]) -> dict[str, Any]:
    """What Streamlit is told of the provider; nothing where nobody signs in.

    Raises:
        UsageError: If something is missing or cannot be meant; names it.
        MissingExtraError: If the packages that sign people in are not installed.
    """
    if settings.page_sign_in is SignIn.NOBODY:
        return {}
    needed = {
        "HEADS_OIDC_METADATA_URL": settings.oidc_metadata_url,
        "HEADS_OIDC_CLIENT_ID": settings.oidc_client_id,
        "HEADS_OIDC_CLIENT_SECRET": _shown(settings.oidc_client_secret),
        "HEADS_PAGE_COOKIE_SECRET": _shown(settings.page_cookie_secret),
        "HEADS_PAGE_USERS": settings.page_users,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise UsageError(
            f"HEADS_PAGE_SIGN_IN={settings.page_sign_in} needs {', '.join(missing)} in the "
            "environment too; docs/operating.md says what each is"
        )
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise MissingExtraError(
                f"signing in needs the package {name}; "
                "install it with `pip install 'head-catalog[ui]'`"
            )
    if len(str(needed["HEADS_PAGE_COOKIE_SECRET"])) < _SHORTEST_SECRET:
        raise UsageError(
            f"HEADS_PAGE_COOKIE_SECRET must have {_SHORTEST_SECRET} characters at least, which "
            "nobody can guess: `openssl rand -hex 32` makes some"
        )
    _require_url("HEADS_OIDC_METADATA_URL", str(settings.oidc_metadata_url))
    if settings.page_url is None and address not in LOOPBACK:
        raise UsageError(
            f"the page listens on {address}: HEADS_PAGE_URL must say what people type to reach "
            "it, such as https://heads.lab.org, for the provider to send them back there"
        )
    page = settings.page_url or f"http://{address}:{port}"
    _require_url("HEADS_PAGE_URL", page)
    return {
        "auth": {
            "redirect_uri": f"{page.rstrip('/')}/oauth2callback",
            "cookie_secret": needed["HEADS_PAGE_COOKIE_SECRET"],
            "client_id": settings.oidc_client_id,
            "client_secret": needed["HEADS_OIDC_CLIENT_SECRET"],
            "server_metadata_url": settings.oidc_metadata_url,
        }
    }


def provider_trouble(metadata_url: str, *, patience: float = 10.0) -> str | None:
    """What is wrong with the provider, in a sentence; None where it says of itself what it must."""
    import httpx  # noqa: PLC0415 - of an extra

    try:
        answer = httpx.get(metadata_url, timeout=patience).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        return f"{metadata_url} cannot be read ({type(error).__name__})"
    missing = [name for name in _METADATA if not isinstance(answer, dict) or name not in answer]
    return f"{metadata_url} lacks {', '.join(missing)}" if missing else None


def host(settings: Settings) -> str | None:
    """The name by which people reach the page, where the operator has said so.

    Raises:
        UsageError: If it is no URL.
    """
    if settings.page_url is None:
        return None
    _require_url("HEADS_PAGE_URL", settings.page_url)
    return urlsplit(settings.page_url).hostname


def _as_operated(settings: Settings, *, by: str, who: str | None) -> Permission:
    if not settings.page_may_submit:
        return Permission(refusal=_off(), who=who)
    return Permission(by=by, who=who)


def _off() -> str:
    return "This page changes nothing, unless it is run with HEADS_PAGE_MAY_SUBMIT=true."


def _is_fresh(settings: Settings, claims: Mapping[str, Any]) -> bool:
    # Streamlit's cookie lasts a month, whatever the token says.
    issued = claims.get("iat")
    if not isinstance(issued, int | float):
        return False
    return -_AHEAD <= time.time() - issued < settings.page_sign_in_hours * _HOUR


def _address(settings: Settings, claims: Mapping[str, Any]) -> str | None:
    """The reader's address, if it is known to be theirs."""
    email = claims.get("email")
    if not isinstance(email, str) or email.count("@") != 1:
        return None
    verified = claims.get("email_verified")
    trusted = verified is True or (verified is None and settings.oidc_trust_email)
    return email.lower() if trusted else None


def _is_among(users: tuple[str, ...], address: str | None) -> bool:
    if "*" in users:
        return True
    return address is not None and (address in users or f"@{address.rpartition('@')[2]}" in users)


def _shown(secret: Any) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _require_url(name: str, text: str) -> None:
    try:
        parts = urlsplit(text)
        place = parts.hostname
    except ValueError:
        place = None
    if not place or (parts.scheme, place in LOOPBACK) not in _SAFE:
        raise UsageError(
            f"{name} must begin with https://, or lead to this machine with http://127.0.0.1 or "
            "http://localhost"
        )
