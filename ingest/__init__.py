"""Measuring heads: readers, probes, metrics and the suites that bring them together.

Importing this package loads neither torch nor the database.
"""
