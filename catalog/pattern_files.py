"""Side files of a DuckDB catalog: the numbers of stored attention patterns, as safetensors.

They lie in a folder beside the database, `heads.duckdb.patterns` beside `heads.duckdb`, one file
per run and prompt with one tensor per head. A file is complete before a row names it, and is
removed after the last row that names it: what no row names is left over from a process that was
killed, and goes with the next write.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path

from catalog.database import Database
from catalog.errors import StorageError

SUFFIX = ".safetensors"
_PART = ".part"
_ALIGNMENT = 8
"""Of the numbers' start in bytes, as safetensors writes it."""


def folder_of(database: Database) -> Path:
    """Where the side files of a DuckDB catalog lie, or would lie."""
    assert database.path is not None  # noqa: S101 - narrows the type
    return database.path.with_name(f"{database.path.name}.patterns")


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, tensors: Mapping[str, bytes]) -> tuple[str, dict[str, int]]:
    """Write float16 numbers as one safetensors file, which is there whole or not at all.

    Args:
        folder: Made where there is none.
        tensors: Content by name.

    Returns:
        The file's name, and where in it each tensor starts, in bytes.

    Raises:
        StorageError: If it cannot be written.
    """
    header, offsets, end = {}, {}, 0
    for name, content in tensors.items():
        start, end = end, end + len(content)
        header[name] = {"dtype": "F16", "shape": [len(content) // 2], "data_offsets": [start, end]}
        offsets[name] = start
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % _ALIGNMENT)
    prefix = len(described).to_bytes(8, "little") + described
    name = f"{uuid.uuid4().hex}{SUFFIX}"
    part = folder / f"{name}{_PART}"
    try:
        folder.mkdir(exist_ok=True)
        with part.open("wb") as file:
            file.write(prefix)
            file.writelines(tensors.values())
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / name)
        sync_folder(folder)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{folder / name} cannot be written ({error.strerror}); the catalog is as it was before"
        ) from error
    return name, {key: len(prefix) + start for key, start in offsets.items()}


def read(path: Path, offset: int, size: int, sha256: str) -> bytes:
    """One pattern's bytes.

    Raises:
        StorageError: If the file is missing, cannot be read, or has other contents than were
            written.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except FileNotFoundError:
        raise StorageError(
            f"{path} is missing, which holds stored patterns of this catalog; bring it back from "
            "where the catalog was copied from, or store them again with `heads patterns --force`"
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if checksum(content) != sha256:
        raise StorageError(
            f"{path} is not as the catalog wrote it; bring it back from a copy, or store its "
            "patterns again with `heads patterns --force`"
        )
    return content


def sweep(folder: Path, named: Collection[str]) -> None:
    """Remove the side files that no row names; what cannot be removed goes another time."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.endswith((SUFFIX, _PART)) and path.name not in named:
            with contextlib.suppress(OSError):
                path.unlink()


def size(folder: Path) -> int:
    """Bytes of all side files."""
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def move(folder: Path, into: Path) -> None:
    """Move all side files to another folder of the same file system.

    Raises:
        OSError: If that cannot be.
    """
    into.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.replace(into / path.name)
    sync_folder(into)


def sync_folder(folder: Path) -> None:
    """Make a new name last through a loss of power, as its contents do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
