"""URLs of databases and brokers as they may be shown."""

import re

_SECRETS = re.compile(r"([?&][a-z_]*(?:password|passwd|secret|token)=)[^&]*", re.IGNORECASE)


def shown(url: str) -> str:
    """A URL, malformed or not, with `***` for its password.

    A password is all from the first colon after the scheme to the last `@`, since people write
    `@`, `/` and `:` into passwords as they are.
    """
    before, at, host = _SECRETS.sub(r"\1***", url).rpartition("@")
    if not at:
        return host
    scheme, slashes, user = before.partition("://")
    if not slashes:
        return f"***@{host}"
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{':***' if colon else ''}@{host}"
