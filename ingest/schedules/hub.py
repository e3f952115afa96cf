"""What the Hub says of its models, one request at a time.

huggingface_hub's own listings sleep inside the call for as long as a rate limit lasts, and wait for
an answer without end. A scheduler has other work: here a request has a time limit, none is
repeated, and when to ask again is the caller's to keep.
"""

import email.utils
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import (
    get_session,
    hf_raise_for_status,
    parse_ratelimit_headers,
    validate_repo_id,
)

from catalog.errors import HeadsError, ModelError

TIMEOUT = 15.0
"""Seconds that one request may wait for the next bytes of its answer."""

_PAGE = 100
_FACTS = ("config", "disabled", "downloads", "gated", "safetensors", "sha", "siblings", "tags")
_LATER = (408, 425, 429)
_REASONS = {
    GatedRepoError: "it is gated: accept its terms on the Hub, and set HF_TOKEN",
    RevisionNotFoundError: "it has no such revision",
    RepositoryNotFoundError: "it is not on the Hub, or private: set HF_TOKEN",
    DisabledRepoError: "the Hub has disabled it",
}
_UNAUTHORISED, _FORBIDDEN = 401, 403


class HubBusyError(HeadsError):
    """The Hub asks to be left alone for a while, or cannot answer now."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """Keep what the Hub asked for.

        Args:
            message: One sentence.
            retry_after: Seconds, where the Hub named them.
        """
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Some models of a longer list; `rest` asks for those after them, None at the end."""

    models: Sequence[ModelInfo]
    rest: str | None


class Hub:
    """The Hub of this process's environment: HF_ENDPOINT, and HF_TOKEN where it is set."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._endpoint = constants.ENDPOINT
        # Of the environment only, never a token that someone has left on this machine.
        self._token: str | bool = os.environ.get("HF_TOKEN") or False

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    def models(
        self, *, author: str | None = None, search: str | None = None, rest: str | None = None
    ) -> Listing:
        """Models, those that changed last first.

        Args:
            author: Organisation or user.
            search: Words in the model's id.
            rest: Of the listing before this one.
        """
        asked = {"author": author, "search": search}
        params: list[tuple[str, Any]]
        params = [(name, value) for name, value in asked.items() if value]
        params += [("sort", "lastModified"), ("limit", str(_PAGE))]
        params += [("expand", fact) for fact in _FACTS]
        response = self._get(
            f"/api/models?{rest}" if rest else "/api/models", None if rest else params
        )
        # Only the query is followed: behind a mirror the link names the Hub itself, and a token
        # belongs to nobody but the endpoint.
        link = response.links.get("next", {}).get("url")
        after = urlsplit(link).query if link else None
        return Listing(
            models=[_model(item) for item in _json(response, list)],
            rest=after if after != rest else None,
        )

    def model(self, name: str, revision: str | None = None) -> ModelInfo:
        """One model, at a branch, tag or commit; by default at the head of its main branch.

        Raises:
            ModelError: If there is none, or it is not for this token.
        """
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        params: list[tuple[str, Any]] = [("expand", fact) for fact in _FACTS]
        return _model(_json(self._get(f"/api/models/{_checked(name)}{at}", params, name), dict))

    def collection(self, slug: str) -> list[str]:
        """Ids of the models of a collection, in its order."""
        response = self._get(f"/api/collections/{quote(slug)}", None, f"the collection {slug}")
        items = _json(response, dict).get("items", ())
        return [item["id"] for item in items if item.get("type") == "model"]

    def require_access(self, name: str) -> None:
        """Make sure that a gated model's files are for this token.

        Raises:
            ModelError: If they are not.
        """
        self._get(f"/api/models/{_checked(name)}/auth-check", None, name)

    def n_params(self, model: ModelInfo) -> int | None:
        """As the headers of its weights say, where the Hub has not counted; None: they do not.

        At most two requests, and no weights.
        """
        files = {file.rfilename for file in model.siblings or ()}
        api = HfApi(endpoint=self._endpoint, token=self._token)
        try:
            if constants.SAFETENSORS_SINGLE_FILE in files:
                counts = api.parse_safetensors_file_metadata(
                    model.id, constants.SAFETENSORS_SINGLE_FILE, timeout=TIMEOUT
                ).parameter_count
            elif constants.SAFETENSORS_INDEX_FILE in files:
                counts = api.get_sharded_safetensors_metadata(
                    model.id, timeout=TIMEOUT
                ).parameter_count
            else:
                return None
        except httpx2.TransportError as error:
            raise _unreachable(error) from error
        except HfHubHTTPError as error:
            _require_answer(error.response)
            return None
        except (SafetensorsParsingError, ValueError, KeyError, TypeError):
            return None
        return sum(counts.values()) or None

    def _get(
        self, path: str, params: list[tuple[str, Any]] | None, name: str = "the list of models"
    ) -> httpx2.Response:
        """An answer of the Hub.

        Raises:
            HubBusyError: If there is none now.
            ModelError: If the Hub does not give what is asked for; names it.
        """
        try:
            response = get_session().get(
                f"{self._endpoint}{path}",
                params=params,
                headers={"authorization": f"Bearer {self._token}"} if self._token else None,
                timeout=TIMEOUT,
            )
        except httpx2.TransportError as error:
            raise _unreachable(error) from error
        except OfflineModeIsEnabled:
            raise HeadsError(
                "HF_HUB_OFFLINE is set, so the Hub cannot be asked; unset it"
            ) from None
        _require_answer(response)
        try:
            hf_raise_for_status(response)
        except HfHubHTTPError as error:
            raise ModelError(f"the Hub does not give {name}: {_reason(error)}") from error
        return response


def _model(item: Mapping[str, Any]) -> ModelInfo:
    return ModelInfo(**{"siblings": None, **item})


def _checked(name: str) -> str:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"{name!r} is no Hub id; expected ORGANISATION/NAME") from None
    return name


def _json(response: httpx2.Response, kind: type) -> Any:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, kind):
        raise HubBusyError("the Hub answers, but not with what was asked for")
    return content


def _require_answer(response: httpx2.Response) -> None:
    status = response.status_code
    if status in _LATER or status // 100 == 5:  # noqa: PLR2004 - 5xx
        raise HubBusyError(f"the Hub answers {status}", _retry_after(response.headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, which the Hub says in its own header or in the standard one."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    parsed = email.utils.parsedate_tz(text)
    if parsed is None:
        return None
    return max(0.0, email.utils.mktime_tz(parsed) - datetime.now(UTC).timestamp())


def _unreachable(error: httpx2.TransportError) -> HubBusyError:
    reason = str(error).strip().splitlines()
    return HubBusyError(
        f"the Hub cannot be reached: {reason[0] if reason else type(error).__name__}"
    )


def _reason(error: HfHubHTTPError) -> str:
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    status = error.response.status_code
    if status == _UNAUTHORISED:
        return "HF_TOKEN is missing or not accepted"
    if status == _FORBIDDEN:
        return "it is not for this HF_TOKEN"
    return f"it answers {status}"
