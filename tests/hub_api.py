"""A stand-in for the Hub's API over real HTTP: lists in pages, limits, refusals, files.

What it answers follows the Hub's own: properties as `expand` asks for them, `Link` headers with an
opaque cursor, `RateLimit` and `Retry-After`, `X-Error-Code`, 401 for what strangers may not know.
"""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secretsecretsecret"  # noqa: S105 - of nobody
MOST_IN_A_PAGE = 1000
Headers = dict[str, str]


@dataclass
class Repository:
    """A model as its owner sees it; `folder` has its files, where any are fetched."""

    sha: str = "a" * 40
    architecture: str | None = "llama"
    params: int | None = 1_000_000
    downloads: int = 100
    licence: str | None = "mit"
    files: Sequence[str] = ("config.json", "model.safetensors")
    gated: str | bool = False
    is_readable: bool = True
    """With the token, where it is gated or private."""
    private: bool = False
    disabled: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def facts(self, name: str, expand: Sequence[str]) -> dict[str, Any]:
        everything = {
            "config": {"model_type": self.architecture} if self.architecture else None,
            "disabled": self.disabled,
            "downloads": self.downloads,
            "gated": self.gated,
            "private": self.private,
            "safetensors": self.params
            and {"parameters": {"F32": self.params}, "total": self.params},
            "sha": self.sha,
            "siblings": [{"rfilename": file} for file in self.files],
            "tags": ["transformers", *([f"license:{self.licence}"] if self.licence else [])],
        }
        usual = ("sha", "siblings", "gated", "private", "disabled", "downloads", "tags")
        chosen = {k: everything[k] for k in expand or usual if everything[k] is not None}
        return {"_id": name, "id": name, "modelId": name} | chosen


class Hub(ThreadingHTTPServer):
    """Repositories by name, in the order of the last change: the last is listed first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, list[tuple[str, str]]] = {}
        self.faults: list[tuple[int, Headers]] = []
        """Answered to the next requests, one each, whatever they ask."""
        self.asked: list[str] = []
        """Paths of the requests, in order."""
        self.tokens: set[str | None] = set()
        self.delay = 0.0
        self.link_host: str | None = None
        """What links name in place of this server, as behind a mirror."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        url = urlsplit(self.path)
        hub = self.server
        hub.asked.append(unquote(url.path))
        hub.tokens.add(self.headers.get("Authorization"))
        time.sleep(hub.delay)
        if hub.faults:
            status, headers = hub.faults.pop(0)
            self._send(status, b"<html>not now</html>", headers)
            return
        query = parse_qs(url.query)
        parts = unquote(url.path).strip("/").split("/")
        match parts:
            case ["api", "models"]:
                self._list(query)
            case ["api", "models", owner, name, *rest]:
                self._model(f"{owner}/{name}", rest, query)
            case ["api", "collections", owner, slug]:
                self._collection(f"{owner}/{slug}")
            case [owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._send(404, b"{}", {})

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _list(self, query: dict[str, list[str]]) -> None:
        hub = self.server
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        names = [
            name
            for name, one in reversed(hub.repositories.items())
            if (not author or name.startswith(f"{author}/"))
            and search.lower() in name.lower()
            and (not one.private or (self._is_known and one.is_readable))
        ]
        try:
            cursor = (
                base64.b64decode(query["cursor"][0], validate=True) if "cursor" in query else b"0"
            )
            start = int(cursor)
        except ValueError:
            self._send(400, b'{"error":"Invalid cursor"}', {})
            return
        size = min(int(query.get("limit", ["1000"])[0]), MOST_IN_A_PAGE)
        items = [
            hub.repositories[n].facts(n, query.get("expand", [])) for n in names[start:][:size]
        ]
        headers = {}
        if start + size < len(names):
            after = base64.b64encode(str(start + size).encode()).decode()
            kept = "&".join(f"{k}={v}" for k, vs in query.items() for v in vs if k != "cursor")
            link = f"{hub.link_host or hub.endpoint}/api/models?{kept}&cursor={after}"
            headers["Link"] = f'<{link}>; rel="next"'
        self._send(200, json.dumps(items).encode(), headers)

    def _model(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        one = self._repository(name)
        if one is None:
            return
        match rest:
            case ["auth-check"]:
                if one.gated and not (self._is_known and one.is_readable):
                    self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                else:
                    self._send(200, b"{}", {})
            case ["tree", *_]:
                assert one.folder is not None
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                    for f in sorted(one.folder.iterdir())
                ]
                self._send(200, json.dumps(files).encode(), {})
            case [] | ["revision", _]:
                revision = rest[1] if rest else "main"
                known = {"main": one.sha, one.sha: one.sha} | one.branches
                if revision not in known:
                    self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                    return
                facts = one.facts(name, query.get("expand", [])) | {"sha": known[revision]}
                self._send(200, json.dumps(facts).encode(), {})
            case _:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _repository(self, name: str) -> Repository | None:
        one = self.server.repositories.get(name)
        if one is None or (one.private and not (self._is_known and one.is_readable)):
            # Strangers are not told whether it is missing or private.
            status = 404 if self._is_known else 401
            self._send(status, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        return one

    def _collection(self, slug: str) -> None:
        items = self.server.collections.get(slug)
        if items is None:
            self._send(404, b'{"error":"Collection not found"}', {})
            return
        listed = [
            {"_id": str(place), "id": name, "type": kind, "position": place}
            for place, (kind, name) in enumerate(items)
        ]
        content = {"slug": slug, "title": "t", "owner": {"name": "o"}, "items": listed}
        self._send(200, json.dumps(content).encode(), {})

    def _file(self, name: str, revision: str, path: str) -> None:
        one = self._repository(name)
        if one is None:
            return
        if one.folder is None or not (one.folder / path).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (one.folder / path).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": one.sha if revision == "main" else revision,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if asked is None:
            self._send(200, content, headers)
            return
        first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self._send(206, part, headers)

    def _send(self, status: int, content: bytes, headers: Headers) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who waits no longer
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub without models."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
