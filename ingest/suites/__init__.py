"""Suites: which metrics share which pass over a model."""

from ingest.suites import patterns, relations
from ingest.suites._plan import Inputs, Plan, Planner

SUITES: dict[str, Planner] = {patterns.SUITE: patterns.plan, relations.SUITE: relations.plan}

__all__ = ["SUITES", "Inputs", "Plan", "Planner"]
