"""Suites: which metrics share which pass over a model."""

from ingest.suites import dynamic, patterns, relations, salient, weights
from ingest.suites._memory import batches, if_it_fits, is_out_of_memory
from ingest.suites._plan import Inputs, OpenModel, Plan, Planner

# What needs weights alone comes first: it is done when a model turns out not to run.
SUITES: dict[str, Planner] = {
    relations.SUITE: relations.plan,
    weights.SUITE: weights.plan,
    salient.SUITE: salient.plan,
    patterns.SUITE: patterns.plan,
    dynamic.SUITE: dynamic.plan,
}

__all__ = [
    "SUITES",
    "Inputs",
    "OpenModel",
    "Plan",
    "Planner",
    "batches",
    "if_it_fits",
    "is_out_of_memory",
]
