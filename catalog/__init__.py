"""Head Catalog: a catalog of attention heads across language models.

>>> import catalog
>>> heads = catalog.connect("duckdb:///heads.duckdb")  # doctest: +SKIP
>>> heads.sql("SELECT * FROM scores WHERE metric = 'induction'").polars()  # doctest: +SKIP
"""

from catalog.catalog import Catalog, connect
from catalog.errors import HeadsError
from catalog.settings import Settings
from catalog.sql import Result

__all__ = ["Catalog", "HeadsError", "Result", "Settings", "connect"]
