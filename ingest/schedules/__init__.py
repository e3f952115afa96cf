"""Models that ingest themselves: what schedules watch, and what they submit.

Schedules are kept in the job store (`catalog.jobs.schedules`); `tick` runs those that are due.
"""

from ingest.schedules.ticking import Decided, Ran, Submit, add, preview, run_now, tick
from ingest.schedules.when import interval

__all__ = ["Decided", "Ran", "Submit", "add", "interval", "preview", "run_now", "tick"]
