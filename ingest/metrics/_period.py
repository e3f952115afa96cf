"""Sequences that are one block, said twice."""

from ingest.metrics._declare import Sequences
from ingest.rows import Rows


def period_of(rows: Rows, sequences: Sequences) -> int:
    """The length of the block; its second copy is the last so many positions.

    Raises:
        ValueError: If sequences are not one block repeated once, after `bos` tokens.
    """
    if sequences.period is None or rows.length != sequences.bos + 2 * sequences.period:
        raise ValueError(
            f"expected one block repeated once: bos + 2 * period = {rows.length} positions; "
            f"got bos {sequences.bos}, period {sequences.period}"
        )
    return sequences.period
