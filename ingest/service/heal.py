"""What keeps jobs going when processes die and messages are lost."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import DBAPIError

from catalog import publishing
from catalog.database import Database
from catalog.errors import HeadsError
from catalog.jobs import Job, JobStore, State
from ingest.service.app import nudge, waiting

_LOST_AFTER = 15.0
"""Seconds after which a job's message may be lost, if fewer wait than there are queued jobs."""
_SLACK = timedelta(minutes=5)
"""By how much clocks of different machines may differ."""
_TURN = 5.0
"""Seconds to wait for a writer, who may be the one that has to be reaped meanwhile."""
_RECENT = 1000
"""Jobs that are looked through for those whose worker died."""

_log = logging.getLogger(__name__)


class Healer:
    """Reaps and nudges, as often as it is asked to."""

    def __init__(self, store: JobStore, app: Celery, *, lease: float) -> None:
        """Take the lease, in seconds, that workers hold jobs under."""
        self._store, self._app, self._lease = store, app, lease
        self._reap_from = 0.0
        self._lacking: dict[str, int] = {}

    def heal(self) -> None:
        """Queue what dead workers left, and send messages for jobs that nobody is told of.

        Raises:
            StorageError: If the job store is away.
        """
        try:
            self._reap()
            self._nudge()
        except HeadsError:
            # Workers could not renew their leases either, and are given the time to do so.
            self._reap_from = time.monotonic() + self._lease
            raise

    def _reap(self) -> None:
        if time.monotonic() < self._reap_from:
            return
        reaped = self._store.reap()
        for job in reaped.requeued:
            _log.warning("job %d: worker %s is gone; queued again", job.id, job.worker)
        for job in (*reaped.failed, *reaped.cancelled):
            _log.warning("job %d: worker %s is gone; %s", job.id, job.worker, job.state)
        if ready := [job for job in reaped.requeued if job.not_before is None]:
            nudge(self._app, self._store, ready)

    def _nudge(self) -> None:
        """Send again what was lost: where fewer messages wait than jobs, not to flood queues."""
        if not self._store.to_nudge(_LOST_AFTER):
            return
        queued: defaultdict[str, list[Job]] = defaultdict(list)
        for job in self._store.to_nudge(0):
            queued[job.queue].append(job)
        try:
            there = waiting(self._app, queued)
        except BrokerError:
            return
        late = sorted(
            self._store.to_nudge(_LOST_AFTER), key=lambda job: job.nudged_at or job.queued_at
        )
        # A message that was just taken lacks for a moment, until its job is claimed.
        before, self._lacking = self._lacking, {q: len(queued[q]) - there[q] for q in queued}
        for queue, lacking in self._lacking.items():
            count = max(0, min(lacking, before.get(queue, 0)))
            lost = [job for job in late if job.queue == queue][:count]
            if lost:
                _log.info("queue %s: messages of %d jobs are sent again", queue, len(lost))
                nudge(self._app, self._store, lost)


def close_orphans(database: Database, dead: Sequence[Job], alive: Sequence[Job]) -> list[int]:
    """Fail the runs that workers on other machines left; those of this one are known otherwise.

    Args:
        database: The catalog.
        dead: Jobs whose last holder works on them no more.
        alive: Jobs that are being worked on.

    Returns:
        The runs' ids.
    """
    working = {(job.host, job.pid) for job in alive}
    closed = []
    for run_id, host, pid, started in publishing.running(database):
        left = (job for job in dead if (job.host, job.pid) == (host, pid))
        job = next((job for job in left if _is_within(started, job)), None)
        if job is not None and (host, pid) not in working:
            reason = f"worker {job.worker} on {host} ended in the middle of job {job.id}"
            publishing.fail(database, run_id, reason, patience=_TURN)
            closed.append(run_id)
    return closed


def close_all_orphans(database: Database, store: JobStore) -> list[int]:
    """`close_orphans` of all recent jobs; what cannot be done now is left for later."""
    try:
        publishing.reap(database)
        alive = store.list(states=(State.RUNNING,))
        dead = [job for job in store.list(limit=_RECENT) if job.state != State.RUNNING and job.host]
        return close_orphans(database, dead, alive)
    except (HeadsError, DBAPIError) as error:
        _log.warning("runs of dead workers cannot be closed now: %s", error)
        return []


def _is_within(started: datetime, job: Job) -> bool:
    """Whether a run can be of a job's last attempt: a process's number is used again one day."""
    if job.started_at is None or started < job.started_at - _SLACK:
        return False
    ended = job.finished_at or (job.queued_at if job.state == State.QUEUED else None)
    return ended is None or started <= ended + _SLACK
