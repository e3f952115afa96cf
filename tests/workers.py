"""Workers and schedulers as processes of their own, and what a catalog shows once they are done."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import forks
import psutil

from catalog import Catalog
from catalog.errors import HeadsError
from catalog.jobs import Job, JobStore, open_store

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
OVER = {"succeeded", "failed", "cancelled"}

_OF_ONE_RUN = {"run_id", "added_at", "started_at", "finished_at", "seconds", "peak_memory"}
"""Columns that tell one run from another that measured the same."""
_PUBLISHED = {"runs": "status = 'succeeded'", "score_runs": "is_published"}
_VIEWS = (
    "SELECT table_name FROM information_schema.tables "
    "WHERE table_type = 'VIEW' AND table_schema IN ('main', 'public') ORDER BY table_name"
)


def published(catalog: Catalog) -> dict[str, list[str]]:
    """Every row that readers see in every view, in order, but for what tells runs apart."""
    rows = {}
    for view in _views(catalog):
        condition = _PUBLISHED.get(view, "true")
        found = catalog.sql(f"SELECT * FROM {view} WHERE {condition}")
        kept = [name for name in found.columns if name not in _OF_ONE_RUN]
        rows[view] = sorted(repr([_plain(row[name]) for name in kept]) for row in found)
    return rows


def _plain(value: Any) -> Any:
    """JSON as what it says: databases part and sort it each in its own way."""
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(json.loads(value), sort_keys=True)
    return value


def orphans(catalog: Catalog) -> list[dict[str, Any]]:
    """Runs that claim to run, and rows of readers that come from a run which did not succeed."""
    found = catalog.sql("SELECT run_id, status FROM runs WHERE status = 'running'").rows()
    for view in _views(catalog):
        result = catalog.sql(f"SELECT * FROM {view} LIMIT 0")
        if view != "runs" and "run_id" in result.columns:
            found += catalog.sql(
                f"SELECT DISTINCT '{view}' AS view, run_id FROM {view} WHERE run_id IS NOT NULL "
                "AND run_id NOT IN (SELECT run_id FROM runs WHERE status = 'succeeded')"
            ).rows()
    return found


def _views(catalog: Catalog) -> list[str]:
    return [row["table_name"] for row in catalog.sql(_VIEWS)]


class Heads:
    """A running `heads ...`, in a process group of its own."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it; what it says goes to the end of the log."""
        self.log = log
        log.touch()
        self._process = forks.start(arguments, environment, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_running()

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.children(recursive=True)
        return []

    def kill(self) -> None:
        """SIGKILL it alone: what it started is left to find out."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()
        self._process.wait()

    def kill_child(self, pid: int) -> None:
        """SIGKILL one process that it started."""
        assert pid in {child.pid for child in self.children()}
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL it and what it started, as when a machine loses power."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """Freeze it and what it started, as when a laptop's lid closes."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, timeout: float = 60) -> None:
        """Ask it to end, and wait."""
        self._process.terminate()
        self._process.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Service:
    """One catalog and broker, and the processes that serve them."""

    def __init__(self, catalog: Catalog, folder: Path, environment: Mapping[str, str]) -> None:
        """Prepare; nothing runs yet.

        Args:
            catalog: The catalog as the test sees it, whatever stands between it and the workers.
            folder: For logs.
            environment: Beyond this process's own.
        """
        self.catalog = catalog
        self.store: JobStore = open_store(catalog.database)
        self.folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._started: list[Heads] = []

    def start(self, *arguments: str, **environment: str) -> Heads:
        """Run `heads ...`, with a log of its own."""
        log = self.folder / f"{arguments[0]}-{len(self._started)}.log"
        one = Heads(arguments, self._environment | environment, log)
        self._started.append(one)
        return one

    def worker(self, name: str = "w", **environment: str) -> Heads:
        return self.start(
            "worker", "--queues", "cpu", "--device", "cpu", "--name", name, **environment
        )

    def scheduler(self, **environment: str) -> Heads:
        return self.start("scheduler", **environment)

    def end(self) -> None:
        for one in self._started:
            one.resume()
            one.kill_all()

    def job(self, job_id: int) -> Job:
        job = self.store.get(job_id)
        assert job is not None
        return job

    def when(self, job_id: int, is_so: Callable[[Job], bool], timeout: float = 120) -> Job:
        """Wait until a job is as asked; tells what became of it where it never is."""
        return self.until(lambda: self._if(self.job(job_id), is_so), timeout)

    @staticmethod
    def _if(job: Job, is_so: Callable[[Job], bool]) -> Job | None:
        return job if is_so(job) else None

    def measuring(self, job_id: int, timeout: float = 120) -> Job:
        """Wait until a job is in the middle of its run, which begins when the model is loaded."""

        def is_so(job: Job) -> bool:
            is_loading = str(job.stage).startswith("loading")
            return job.state == "running" and job.done > 0 and not is_loading

        return self.when(job_id, is_so, timeout)

    def finish(self, job_ids: Sequence[int], timeout: float = 240) -> list[Job]:
        """Wait until all of these jobs are over."""

        def over() -> list[Job] | None:
            jobs = [self.job(one) for one in job_ids]
            return jobs if all(job.state in OVER for job in jobs) else None

        return self.until(over, timeout)

    def until(self, look: Callable[[], T | None], timeout: float, every: float = 0.1) -> T:
        """What `look` gives as soon as it gives something; asked every so many seconds."""
        deadline = time.monotonic() + timeout
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing in {timeout:g} s\n{self.told()}")
            time.sleep(every)
        return found

    def told(self) -> str:
        """What jobs and processes said, for a test that fails."""
        with contextlib.suppress(HeadsError):
            return "\n".join([*self._jobs(), *self._logs()])
        return "\n".join(self._logs())

    def _logs(self) -> list[str]:
        return [f"{one.log.name}: {one.log.read_text()[-5000:]}" for one in self._started]

    def _jobs(self) -> list[str]:
        return [
            f"job {job.id} {job.state} attempt {job.attempt} {job.stage} {job.error}: "
            + "; ".join(f"{event.what} {event.detail}" for event in self.store.log(job.id))
            for job in self.store.list()
        ]


@contextlib.contextmanager
def service(catalog: Catalog, folder: Path, environment: Mapping[str, str]) -> Iterator[Service]:
    """A service whose processes are ended whatever happens."""
    one = Service(catalog, folder, environment)
    try:
        yield one
    finally:
        one.end()
