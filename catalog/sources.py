"""Where a model of the catalog was read from, as commands that read models take it."""

from dataclasses import dataclass

_HUB = "hub:"
_LOCAL = ("folder:", "gguf:")


@dataclass(frozen=True)
class Checkpoint:
    """What `heads ingest` and `heads patterns` take: a model and, on the Hub, its revision."""

    model: str
    """A Hub id, or a path on the machine that measured it."""
    revision: str | None


def checkpoint(source: str | None, revision: str | None) -> Checkpoint | None:
    """The checkpoint behind a row of the view `models`; None where the catalog does not say."""
    if source and source.startswith(_HUB):
        return Checkpoint(source.removeprefix(_HUB), revision)
    for prefix in _LOCAL:
        if source and source.startswith(prefix):
            return Checkpoint(source.removeprefix(prefix), None)
    return None
