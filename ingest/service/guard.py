"""What a worker refuses, whatever a job asks for."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import UsageError
from catalog.settings import Settings

if TYPE_CHECKING:
    from ingest.request import Request

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def admit(request: "Request", settings: Settings) -> None:
    """Refuse what the worker's operator has not allowed.

    Pickled weights need HEADS_ALLOW_PICKLE here besides the job's own wish. Where
    HEADS_MODEL_ROOTS names folders, models, relations, probes and files of prompts must lie in
    them, with all that their links point to; where it names none, a job may read what the worker's
    user may.

    Raises:
        UsageError: Naming what is refused, and how to allow it.
    """
    if request.allow_pickle and not settings.allow_pickle:
        raise UsageError(
            "this job asks for pickled weights, which can run any code, and this worker does not "
            "allow them; its operator can, with HEADS_ALLOW_PICKLE=true"
        )
    if not settings.model_roots:
        return
    roots = [root.expanduser().resolve() for root in settings.model_roots]
    for given in (request.model, *request.inputs):
        if _is_on_hub(given):
            continue
        outside = [path for path in _files(Path(given).expanduser()) if not _is_in(path, roots)]
        if outside:
            raise UsageError(
                f"{given} is, or leads, outside of the folders that this worker may read; its "
                "operator names them in HEADS_MODEL_ROOTS"
            )


def _is_on_hub(model: str) -> bool:
    """Whether a name can only be meant for the Hub; everything else is taken for a path."""
    return _HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _files(path: Path) -> list[Path]:
    return [path, *path.rglob("*")]


def _is_in(path: Path, roots: list[Path]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(root) for root in roots)
