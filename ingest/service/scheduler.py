"""The scheduler: one of any number heals, closes what dead workers left, and starts what is due."""

import logging
import os
import platform
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

from catalog import Catalog
from catalog.errors import HeadsError
from catalog.jobs import JobStore, Past, open_store
from catalog.settings import load_settings
from ingest.schedules import Ran, tick
from ingest.service.app import celery_app
from ingest.service.heal import Healer, close_all_orphans

LEADERSHIP = "scheduler"
_ROUND = 2.0
"""Seconds between rounds."""
_LEADS_FOR = 20.0
"""Seconds without a round after which another scheduler takes over."""
_FORGOTTEN_AFTER = 24 * 3600.0
"""Seconds since its last beat after which a worker that died is no longer shown."""
_ORPHANS = 10
"""Rounds between looks for runs of dead workers, for which the catalog is opened."""

_PRUNES = 1800
"""Rounds between looks for jobs that have been over for too long."""

_log = logging.getLogger(__name__)


def schedule(catalog: Catalog, stop: threading.Event) -> None:
    """Do all that keeps jobs going, round by round, until told to stop."""
    store = open_store(catalog.database)
    app = celery_app(catalog.database)
    healer = Healer(store, app, lease=load_settings().lease)
    holder = f"{platform.node()}:{os.getpid()}"
    leads: bool | None = None
    number = 0
    is_away = False
    ticker = _Ticker(store, catalog)
    while True:
        try:
            led = store.lead(LEADERSHIP, holder, _LEADS_FOR)
            if led != leads:
                _log.info("this scheduler leads" if led else "another scheduler leads: waiting")
                leads = led
            if led:
                healer.heal()
                _tidy(catalog, store, number)
                ticker.go_on()
                number += 1
            is_away = False
        except HeadsError as error:
            if not is_away:
                _log.warning("%s", error)
            is_away = True
        if stop.wait(_ROUND):
            break
    ticker.stop()
    try:
        store.resign(LEADERSHIP, holder)
    except HeadsError as error:
        _log.warning("%s", error)


def _tidy(catalog: Catalog, store: JobStore, number: int) -> None:
    """Forget what nobody asks for any more, in the rounds of so many that are for it."""
    if number % _ORPHANS == 0:
        close_all_orphans(catalog.database, store)
        for name in store.forget_workers(_FORGOTTEN_AFTER):
            _log.warning("worker %s has been silent for a day: forgotten", name)
    days = load_settings().keep_jobs
    if days is not None and number % _PRUNES == 0:
        pruned = Past(store).prune(timedelta(days=days))
        _log.info("%d jobs that were over for %g days are forgotten", pruned, days)


class _Ticker:
    """Runs schedules beside the rounds: while the Hub takes its time, jobs are healed all the same.

    A schedule is claimed before it runs, so another scheduler's ticker cannot run it too.
    """

    def __init__(self, store: JobStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schedules")
        self._under_way: Future[list[Ran]] | None = None

    def go_on(self) -> None:
        """Begin a tick, unless one is under way; tell what the last one came to."""
        if self._under_way is not None:
            if not self._under_way.done():
                return
            _tell(self._under_way)
        self._under_way = self._thread.submit(tick, self._store, self._catalog)

    def stop(self) -> None:
        """Wait for the tick under way, which takes seconds."""
        self._thread.shutdown(cancel_futures=True)


def _tell(ticked: Future[list[Ran]]) -> None:
    error = ticked.exception()
    if isinstance(error, HeadsError):
        _log.warning("schedules: %s", error)
    elif error is not None:
        _log.error("schedules could not be run", exc_info=error)
    else:
        for ran in ticked.result():
            _log.info("schedule %s: %s", ran.name, ran.result)
