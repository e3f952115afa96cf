"""Rows of an answer up to its limits."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from catalog.cage.limits import Cut, Limits


@dataclass
class Rows:
    """Batches that came so far; what is kept never exceeds the limits."""

    schema: pa.Schema
    limits: Limits
    cut: Cut | None = None
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _rows: int = 0
    _bytes: int = 0

    def take(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take batches until they end or a limit is reached."""
        for batch in batches:
            self._add(batch)
            if self.cut:
                return

    @property
    def any(self) -> bool:
        return self._rows > 0

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self._batches, self.schema)

    def _add(self, batch: pa.RecordBatch) -> None:
        kept = batch
        if self._rows + kept.num_rows > self.limits.rows:
            kept, self.cut = kept.slice(0, self.limits.rows - self._rows), "rows"
        while kept.num_rows and self._bytes + kept.nbytes > self.limits.bytes:
            kept, self.cut = kept.slice(0, kept.num_rows // 2), "bytes"
        if kept.num_rows:
            self._batches.append(kept)
            self._rows += kept.num_rows
            self._bytes += kept.nbytes
