"""From a request to jobs: one per model and suite, where each is to run, and a nudge."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from catalog import Catalog
from catalog.errors import InputError
from catalog.jobs import JobSpec, JobStore, Submitted, open_store
from catalog.jobs.presence import ALIVE
from catalog.pattern_rows import SUITE as STORED_PATTERNS
from catalog.settings import load_settings
from ingest.request import SUITE_NAMES, CaptureRequest, IngestRequest, Request
from ingest.service.app import CPU, GPU, broker_name, celery_app, nudge
from ingest.service.memory import size_of

_HUB_ANSWERS_WITHIN = 10.0
"""Seconds; whoever queues a job waits for it."""

_log = logging.getLogger(__name__)


def submit(
    catalog: Catalog,
    request: IngestRequest,
    *,
    queue: str | None = None,
    submitted_by: str = "user",
    tell: Callable[[str], None] = _log.warning,
) -> list[Submitted]:
    """Queue what `ingest.run.ingest` would do here: a job per suite.

    The same request, made again while its jobs are queued or running, gives those jobs. Where no
    suite is named, one that cannot be measured on the model ends with a note, not with an error.

    Args:
        catalog: Whose job store takes the jobs, and where their results will be published.
        request: What to measure.
        queue: Where to; by default `gpu` for large models, and those whose size the Hub does not
            tell in time, and `cpu` for others, or the one of the two that live workers serve.
        submitted_by: Who asks, shown with the job.
        tell: Told what a user should know, such as that the broker is down. The jobs are safe
            then: the scheduler sends their messages when it is up.

    Raises:
        UsageError: If the catalog is on a server and no broker is set.
        InputError: If the request's probe or relations cannot be read.
        StorageError: If the job store cannot be written.
    """
    request = _absolute(request)
    asked = [(one.suites[0], one) for one in _per_suite(request)]
    return _submit(catalog, asked, queue, submitted_by, tell)


def submit_patterns(
    catalog: Catalog,
    request: CaptureRequest,
    *,
    queue: str | None = None,
    submitted_by: str = "user",
    tell: Callable[[str], None] = _log.warning,
) -> Submitted:
    """Queue what `ingest.capture.capture` would do here, as one job; otherwise like `submit`."""
    file = request.prompt_file
    request = replace(
        request, model=_resolved(request.model), prompt_file=file and _absolute_path(file)
    )
    [done] = _submit(catalog, [(STORED_PATTERNS, request)], queue, submitted_by, tell)
    return done


def _submit(
    catalog: Catalog,
    asked: Sequence[tuple[str, Request]],
    queue: str | None,
    submitted_by: str,
    tell: Callable[[str], None],
) -> list[Submitted]:
    """Queue a job for each suite with its request, all of one model, and nudge workers."""
    store = open_store(catalog.database)
    app = celery_app(catalog.database)
    chosen = queue or _queue(store, asked[0][1], tell)
    done = [
        store.submit(
            JobSpec(
                model=one.model,
                suite=suite,
                request=one.to_json(),
                queue=chosen,
                key=_key(one),
                submitted_by=submitted_by,
            )
        )
        for suite, one in asked
    ]
    if not nudge(app, store, [one.job for one in done if one.is_new]):
        tell(
            f"the broker ({broker_name(app)}) cannot be reached; the jobs are kept, and begin when "
            "it is up and a scheduler or worker runs"
        )
    return done


def _per_suite(request: IngestRequest) -> list[IngestRequest]:
    return [
        replace(request, suites=(suite,), if_possible=request.if_possible or not request.suites)
        for suite in request.suites or SUITE_NAMES
    ]


def _absolute(request: IngestRequest) -> IngestRequest:
    """With paths that mean the same in a worker's folder."""
    return replace(
        request,
        model=_resolved(request.model),
        relations=request.relations and _absolute_path(request.relations),
        probe=request.probe and _absolute_path(request.probe),
    )


def _absolute_path(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _resolved(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _queue(store: JobStore, request: Request, tell: Callable[[str], None]) -> str:
    """The queue that suits the model, or the other one where only that is served."""
    served = {queue for worker in store.workers(alive_within=ALIVE) for queue in worker.queues}
    if request.device.startswith("cuda"):
        return GPU
    if GPU not in served or request.device == "cpu":
        return CPU
    if CPU not in served:
        return GPU
    size = size_of(request.model, request.revision, within=_HUB_ANSWERS_WITHIN)
    if size is None:
        tell(
            f"nobody says how large {request.model} is, neither its files nor the Hub within "
            f"{_HUB_ANSWERS_WITHIN:g} s: it goes to the queue {GPU}; --queue-name names another"
        )
        return GPU
    return GPU if size.n_params >= load_settings().gpu_parameters else CPU


def _key(request: Request) -> str:
    """Equal for requests whose jobs would do the same."""
    values = request.to_json()
    # How much goes at a time changes nothing, nor does whether its absence is an error.
    for name in ("batch_share", "if_possible"):
        values.pop(name, None)
    for name in ("relations", "probe", "prompt_file"):
        if values.get(name):
            values[name] = _contents(Path(values[name]))
    values["release"] = version("head-catalog")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _contents(path: Path) -> str:
    """A file's contents, or a folder's relations with their names, as a hash.

    Raises:
        InputError: If they cannot be read.
    """
    files: Sequence[Path] = sorted(path.glob("*.json")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
