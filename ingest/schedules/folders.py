"""Models in a folder of this machine, once they lie there whole."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from catalog.errors import ModelError
from ingest.readers.architectures import layout
from ingest.readers.loading import supported_config
from ingest.readers.source import read_json, verify
from ingest.readers.tensors import opened_gguf

SETTLED = timedelta(seconds=60)
"""How long files must have been left alone to be taken as copied."""

_COPYING = (".part", ".partial", ".tmp", ".incomplete", ".crdownload", ".download")
_INDEX = "model.safetensors.index.json"
_PART = re.compile(r"-\d{5}-of-\d{5}\.(gguf|safetensors)", re.IGNORECASE)


class UnsettledError(ModelError):
    """Files that are still being copied, as far as one can tell."""


def models(folder: Path) -> list[Path]:
    """What may be models: folders and GGUF files, but for hidden ones, by name.

    Raises:
        ModelError: If the folder cannot be read.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    visible = [path for path in inside if not path.name.startswith(".")]
    return [path for path in visible if path.is_dir() or path.suffix.lower() == ".gguf"]


def fingerprint(path: Path) -> str:
    """Another one whenever a file comes, goes or changes; contents are not read."""
    lines = []
    for file in _files(path):
        stat = file.stat()
        lines.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require(path: Path, within: Path, now: datetime, *, allow_pickle: bool) -> None:
    """Refuse what is still being copied, damaged, not supported, or elsewhere.

    Args:
        path: One of `models`.
        within: The watched folder, out of which no link may lead.
        now: With time zone.
        allow_pickle: As for an ingest.

    Raises:
        UnsettledError: If it is still being copied.
        ModelError: With any other reason.
    """
    try:
        _require(path, within, now, allow_pickle=allow_pickle)
    except OSError as error:  # it was moved away meanwhile
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error


def _require(path: Path, within: Path, now: datetime, *, allow_pickle: bool) -> None:
    if not path.resolve().is_relative_to(within.resolve()):
        raise ModelError("it is a link out of the watched folder")
    _require_settled(path, now)
    if _PART.search(path.name):
        raise ModelError("it is one part of a split GGUF; merge the parts into one file")
    if any(_PART.search(file.name) for file in _files(path)) and not (path / _INDEX).is_file():
        raise UnsettledError(
            f"it is still being copied: its weights come in parts, without {_INDEX}"
        )
    verify(path, allow_pickle=allow_pickle)
    if path.is_file():
        opened_gguf(path)
        supported_config(path.parent, path.name, gguf_file=path.name)
    else:
        config = read_json(path / "config.json")
        layout(str(config.get("model_type")), path.name)


def _require_settled(path: Path, now: datetime) -> None:
    files = [path, *_files(path)]
    # Copying programs set the time of contents back to the original's; the other they cannot.
    latest = max(max(stat.st_mtime, stat.st_ctime) for stat in (file.stat() for file in files))
    age = now - datetime.fromtimestamp(latest, UTC)
    if age < SETTLED:
        raise UnsettledError(
            f"it changed {max(0, age.total_seconds()):.0f} s ago; left alone for "
            f"{SETTLED.total_seconds():.0f} s it is taken as copied"
        )
    for file in files:
        if file.name.startswith(".") or file.suffix.lower() in _COPYING:
            raise UnsettledError(f"it is still being copied: {file.name} is there")


def _files(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file())
