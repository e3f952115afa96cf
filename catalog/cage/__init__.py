"""The process in which a stranger's SQL runs; `catalog.sandbox` starts it and may kill it.

It loads nothing that it does not need: no SQLAlchemy, none of the catalog.
"""
