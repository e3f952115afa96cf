"""Jobs: what shall be measured, who measures it, and what became of it.

The store is the truth; messages of a broker are nudges. A worker holds a job under a lease, and
a fencing token keeps one whose lease has run out from writing over its successor.
"""

from catalog.errors import LeaseLost
from catalog.jobs.facts import Beat, JobProgress, JobSpec, Reaped, Submitted
from catalog.jobs.orm import Job, JobEvent, State, Worker
from catalog.jobs.past import Past
from catalog.jobs.schedules import Schedules
from catalog.jobs.store import JobStore, open_store

__all__ = [
    "Beat",
    "Job",
    "JobEvent",
    "JobProgress",
    "JobSpec",
    "JobStore",
    "LeaseLost",
    "Past",
    "Reaped",
    "Schedules",
    "State",
    "Submitted",
    "Worker",
    "open_store",
]
