"""What Prometheus is told: the job store's own numbers, read when it asks.

Nothing is counted in the processes that work: a worker's children live for one job, and workers
on several machines would each know a part. Whoever serves this, once, serves all of it, and after
a restart goes on with the same numbers.
"""

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from catalog.database import Database
from catalog.errors import HeadsError, UsageError
from catalog.jobs import JobStore, Past, State, open_store
from catalog.jobs.past import BOUNDS


class JobMetrics(Collector):
    """The job store as Prometheus metrics, read at each scrape."""

    def __init__(self, store: JobStore) -> None:
        """Take the store; nothing is read yet."""
        self._store = store
        self._history = Past(store)

    def collect(self) -> Iterator[Metric]:
        """All metrics; `heads_up` is 0, and the rest absent, while the store is away."""
        found: list[Metric] = []
        # A scrape that fails as a whole would say nothing of why.
        with contextlib.suppress(HeadsError):
            found = [*self._jobs(), *self._past(), *self._workers()]
        yield GaugeMetricFamily("heads_up", "1 while the job store answers.", bool(found))
        yield from found

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("heads_jobs", "Jobs there are.", labels=("queue", "state"))
        counts = self._store.count()
        for queue in sorted({queue for queue, _ in counts}):
            for state in State:
                jobs.add_metric((queue, state), counts.get((queue, state), 0))
        yield jobs
        now = self._store.now()
        oldest = GaugeMetricFamily(
            "heads_job_longest_wait_seconds",
            "For how long the oldest queued job has waited.",
            labels=("queue",),
        )
        waits: dict[str, float] = {}
        for job in self._store.list(states=[State.QUEUED]):
            waits[job.queue] = max(waits.get(job.queue, 0), (now - job.queued_at).total_seconds())
        for queue, wait in sorted(waits.items()):
            oldest.add_metric((queue,), wait)
        yield oldest

    def _past(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "heads_job_events",
            "What has happened to jobs: `claimed` counts attempts, `put back by the reaper` the "
            "workers that died.",
            labels=("suite", "event"),
        )
        for labels, number in sorted(self._history.happened().items()):
            events.add_metric(labels, number)
        yield events
        failures = CounterMetricFamily(
            "heads_job_failures",
            "Jobs that failed, by the exception's name; `lost`: every attempt's worker died.",
            labels=("suite", "kind"),
        )
        for labels, number in sorted(self._history.failures().items()):
            failures.add_metric(labels, number)
        yield failures
        durations = HistogramMetricFamily(
            "heads_job_duration_seconds",
            "What the last attempts of succeeded jobs took, from claim to publication.",
            labels=("suite",),
        )
        names = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        for suite, took in sorted(self._history.durations().items()):
            counts = [*took.within, took.number]
            durations.add_metric((suite,), list(zip(names, counts, strict=True)), took.seconds)
        yield durations

    def _workers(self) -> Iterator[Metric]:
        now = self._store.now()
        age = GaugeMetricFamily(
            "heads_worker_heartbeat_age_seconds",
            "Since when each worker was not heard of; one that was stopped is forgotten at once.",
            labels=("worker", "host", "device"),
        )
        memory = GaugeMetricFamily(
            "heads_worker_memory_bytes",
            "What models may take up on each worker's device.",
            labels=("worker", "host", "device"),
        )
        for worker in self._store.workers():
            labels = (worker.name, worker.host, worker.device or "")
            age.add_metric(labels, (now - worker.heartbeat_at).total_seconds())
            if worker.memory is not None:
                memory.add_metric(labels, worker.memory)
        yield age
        yield memory
        running = GaugeMetricFamily(
            "heads_job_running_seconds",
            "For how long each running job has run.",
            labels=("job", "model", "suite", "worker"),
        )
        for job in self._store.list(states=[State.RUNNING]):
            if job.started_at:
                took = (now - job.started_at).total_seconds()
                running.add_metric((str(job.id), job.model, job.suite, job.worker or ""), took)
        yield running


@contextlib.contextmanager
def served(database: Database, *, port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """Answer Prometheus from a thread, until the end.

    Args:
        database: The catalog whose jobs are told of.
        port: To listen on.
        address: Interface to listen on; others than loopback show model names to others.

    Yields:
        The port, which is another where 0 was asked for.

    Raises:
        UsageError: If the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(JobMetrics(open_store(database)))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {address}:{port}: {error.strerror}"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
