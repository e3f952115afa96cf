"""A folder as a broker, for one machine: kombu's own, with messages that appear whole.

Kombu writes a message where readers look for it: a reader that comes in between takes half of it,
and stops.
"""

import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """Messages as files, each written aside and then renamed."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # its bases differ
        path = Path(self.data_folder_out)
        name = f"{time.time_ns():020}_{uuid.uuid4().hex}.{queue}.msg"
        part = path / f".{name}.part"
        part.write_text(dumps(payload))
        part.replace(path / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002 - kombu's
        folder = Path(self.data_folder_in)
        taken = Path(self.processed_folder)
        taken.mkdir(exist_ok=True)
        for path in sorted(folder.glob(f"*.{queue}.msg")):
            mine = taken / path.name
            try:
                # Who renames it has it.
                path.rename(mine)
            except FileNotFoundError:
                continue
            try:
                return loads(mine.read_text())
            finally:
                mine.unlink(missing_ok=True)
        raise Empty


class Transport(filesystem.Transport):
    """Kombu's transport with these channels."""

    Channel = Channel
