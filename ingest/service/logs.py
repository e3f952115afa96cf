"""Logs of processes that run for weeks: to stderr, for people or for programs to read."""

import atexit
import io
import logging
import os
import sys
import threading
from enum import StrEnum

from catalog.jobs import Job

_FIELDS = ("job", "model", "suite", "attempt")
_about: dict[str, object] = {}
"""What every record of this process is about; a worker's child runs one job and ends."""
_DRAINS = 2.0
"""Seconds for what was said last to be read."""


class LogFormat(StrEnum):
    """How records are written."""

    TEXT = "text"
    JSON = "json"


def set_up(form: LogFormat, level: int = logging.INFO) -> None:
    """Write all records of this process to stderr, in this format.

    With `JSON`, whatever else it or its children write to stdout or stderr comes as records too.
    """
    # Bars draw over their lines, and a log has none to draw over.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    is_json = form is LogFormat.JSON
    handler = logging.StreamHandler(_records_apart() if is_json else sys.stderr)
    handler.addFilter(_add_about)
    handler.setFormatter(_json() if is_json else _Text())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # They tell of each message and each step of theirs.
    for name in ("alembic", "celery", "kombu", "amqp", "redis", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def tell_of(job: Job) -> None:
    """Let all further records name this job."""
    _about.update(job=job.id, model=job.model, suite=job.suite, attempt=job.attempt)


def _records_apart() -> io.TextIOWrapper:
    """The stderr there was; what is written to stdout and stderr from now on becomes records.

    Libraries print, and so does an interpreter that dies: at the file descriptors all of it is
    seen, of processes that are started later as well.
    """
    # Without a buffer, whose lock a child may be forked under.
    raw = os.fdopen(os.dup(2), "wb", buffering=0)
    stderr = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    before = os.dup(1), os.dup(2)
    out, into = os.pipe()
    for stream in (1, 2):
        os.dup2(into, stream)
    os.close(into)
    reader = threading.Thread(target=_record, args=(out,), name="printed", daemon=True)
    reader.start()

    def drain() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), before, strict=True):
            os.dup2(old, stream)
        reader.join(_DRAINS)

    atexit.register(drain)
    return stderr


def _record(descriptor: int) -> None:
    log = logging.getLogger("printed")
    with open(descriptor, errors="replace") as lines:
        for line in lines:
            if told := line.strip():
                log.info("%s", told)


def _add_about(record: logging.LogRecord) -> bool:
    vars(record).update(_about)
    return True


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - of an extra

    return JsonFormatter(
        ["asctime", "levelname", "name", "message"],
        rename_fields={"asctime": "time", "levelname": "level"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        told = super().format(record)
        about = [f"{name} {getattr(record, name)}" for name in _FIELDS if hasattr(record, name)]
        return f"{told}  [{', '.join(about)}]" if about else told
