"""Attention to positions that earlier occurrences of the query's token point to."""

import torch
from jaxtyping import Float
from torch import Tensor

from ingest.metrics._declare import Sequences
from ingest.rows import Rows


def mass_after_same_token(
    rows: Rows, sequences: Sequences, *, ahead: int
) -> Float[Tensor, "batch head query"]:
    """Each query's attention to the keys `ahead` positions after earlier ones of the same token.

    NaN for queries whose token has not occurred before.

    Raises:
        ValueError: If the sequences' tokens are not given.
    """
    if sequences.tokens is None:
        raise ValueError("expected the tokens of the sequences")
    tokens = sequences.tokens[:, : rows.stop]
    is_same = tokens[:, rows.first :, None] == tokens[:, None, :]
    batch, query, key = is_same.tril(rows.first - 1).nonzero(as_tuple=True)
    # One row for each sequence and query, to add up what its keys get.
    row = batch * rows.n_queries + query
    n_rows, n_heads = tokens.shape[0] * rows.n_queries, rows.patterns.shape[1]
    mass = rows.patterns.new_full((n_rows, n_heads), torch.nan)
    mass[row] = 0
    seen = key + ahead >= rows.first_key
    got = rows.patterns[batch[seen], :, query[seen], key[seen] + ahead - rows.first_key]
    mass.index_add_(0, row[seen], got)
    return mass.unflatten(0, (-1, rows.n_queries)).transpose(1, 2)
