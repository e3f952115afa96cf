"""A small stand-in for the Hub: one model with two revisions, over real HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "lab/tiny"


def commit_of(folder: Path) -> str:
    """Forty hex digits, as the Hub's commits have."""
    return hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()


class _Hub(ThreadingHTTPServer):
    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        api, files = f"api/models/{MODEL}", f"{MODEL}/resolve/"
        if path.startswith(files):
            self._file(*path.removeprefix(files).split("/", 1), body=body)
        elif path.startswith(api):
            self._facts(path.removeprefix(api).strip("/"), body=body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _folder(self, revision: str) -> Path | None:
        assert isinstance(self.server, _Hub)
        return self.server.folders.get(revision)

    def _facts(self, rest: str, *, body: bool) -> None:
        kind, _, asked = rest.partition("/")
        revision = asked.split("/")[0] or "main"
        folder = self._folder(revision)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        files = sorted(file for file in folder.iterdir() if file.is_file())
        facts: object = {
            "id": MODEL,
            "modelId": MODEL,
            "sha": commit_of(folder),
            "siblings": [{"rfilename": file.name} for file in files],
        }
        if kind == "tree":
            facts = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
        self._send(200, json.dumps(facts).encode(), {}, body=body)

    def _file(self, revision: str, name: str, *, body: bool) -> None:
        folder = self._folder(revision)
        assert folder is not None
        content = (folder / name).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit_of(folder),
            "Accept-Ranges": "bytes",
        }
        self._send(200, content, headers, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serving(revisions: dict[str, Path]) -> Iterator[str]:
    """Serve folders as the revisions (branch or tag -> folder) of MODEL; yields the endpoint."""
    server = _Hub(revisions | {commit_of(folder): folder for folder in revisions.values()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
