"""From signing in or out back to the view that one left: Streamlit goes to its first page."""

from urllib.parse import quote, unquote, urlsplit

from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

_AWAY = ("/auth/login", "/auth/logout")
_BACK = "/oauth2callback"
_COOKIE = "heads_view"
_LONGEST = 3_000
"""Characters; browsers keep no larger cookies than 4 kB."""
_SECONDS = 600
"""For signing in."""


async def come_back(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Keep the view in a cookie while its reader is away, and go there afterwards."""
    response = await call_next(request)
    if request.url.path.endswith(_AWAY):
        view = quote(_view(request), safe="")
        if len(view) <= _LONGEST:
            response.set_cookie(_COOKIE, view, max_age=_SECONDS, httponly=True, samesite="lax")
    elif request.url.path.endswith(_BACK) and _COOKIE in request.cookies:
        view = unquote(request.cookies[_COOKIE])
        # A path, and of this server alone: neither `//host` nor `/\\host`, which browsers take for
        # another's.
        is_ours = view.startswith("/") and view[1:2] not in {"/", "\\"} and view.isprintable()
        if is_ours and response.headers.get("location", "").startswith("/"):
            response.headers["location"] = quote(view, safe="/?&=%+,;:@!$'()*~-._")
        response.delete_cookie(_COOKIE)
    return response


def _view(request: Request) -> str:
    """The path and query of the view that sent the reader here."""
    came_from = urlsplit(request.headers.get("referer", ""))
    if came_from.netloc != request.headers.get("host"):
        return "/"
    return came_from.path + (f"?{came_from.query}" if came_from.query else "")
