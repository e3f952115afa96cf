"""Work that goes layer by layer, keeps what it has, and goes on where it was stopped.

What is kept of a layer lies in a folder of its own, named by what is measured: the same run begun
again finds it there. The catalog sees nothing of it; a run is published as a whole.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catalog.errors import StorageError
from catalog.settings import load_settings
from ingest.progress import Progress

_ABANDONED = 30 * 24 * 3600.0
"""Seconds after which what nobody has gone on with is removed."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What one layer's work came to: tensors by name, and why heads of it have no score.

    `undefined` has reasons by the head's name (`L5H3`), or the layer's (`L5`) where it is all of
    them.
    """

    tensors: Mapping[str, Tensor]
    undefined: Mapping[str, str] = field(default_factory=dict)


class Workroom:
    """Where the layers of one run are kept until it is published."""

    def __init__(self, key: str) -> None:
        """Name the room; nothing is made before something is kept.

        Args:
            key: Equal for runs that would measure the same.
        """
        self._all = load_settings().work_dir / "layers"
        self._folder = self._all / key

    def layers(
        self,
        name: str,
        n_layers: int,
        work: Callable[[int], Kept],
        progress: Progress,
    ) -> list[Kept]:
        """Every layer's result, of those that are kept already without doing them again.

        Args:
            name: Of this piece of work, told as progress; a run may have several.
            n_layers: How many there are.
            work: What to do for one layer.
            progress: Told of every layer.

        Raises:
            StorageError: If there is no room for what is to be kept.
        """
        progress.steps(name, n_layers)
        done = []
        for layer in range(n_layers):
            path = self._folder / f"{name}-{layer:04}.safetensors"
            kept = _read(path)
            if kept is None:
                kept = work(layer)
                _write(path, kept)
            done.append(kept)
            progress.advance()
        return done

    def clear(self) -> None:
        """Remove what is kept for this run, and what was abandoned long ago."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in _abandoned(self._all):
            shutil.rmtree(folder, ignore_errors=True)


def _abandoned(room: Path) -> Iterator[Path]:
    if room.is_dir():
        limit = time.time() - _ABANDONED
        yield from (one for one in room.iterdir() if one.stat().st_mtime < limit)


def _read(path: Path) -> Kept | None:
    try:
        with safe_open(path, framework="pt") as file:
            undefined = json.loads((file.metadata() or {})["undefined"])
            # Copies, so that nothing stays mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None  # never made, or by something that broke: made again
    return Kept(tensors=tensors, undefined=undefined)


def _write(path: Path, kept: Kept) -> None:
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.tensors.items()}
    metadata = {"undefined": json.dumps(dict(kept.undefined))}
    for is_last in (False, False, False, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata=metadata)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            # Another run that measures the same may have ended, and cleared the room.
            if is_last:
                raise StorageError(
                    f"{path.parent} cannot be written ({error}); make room, or name another "
                    "folder in HEADS_WORK_DIR"
                ) from error
        else:
            return
