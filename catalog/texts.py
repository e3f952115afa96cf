"""The texts of tokens: how the catalog writes them, and their ids."""

from collections.abc import Sequence

import pyarrow as pa
from sqlalchemy import Column, Connection, MetaData, String, Table, exists, insert, select

from catalog import bulk
from catalog.orm import TokenText, table

MAX_LENGTH = 500
"""Characters of a token that are kept: an entry of PostgreSQL's index has room for no more."""

_NUL, _PICTURE_OF_NUL = "\x00", "\u2400"
_BROUGHT = Table(
    "brought_text", MetaData(), Column("text", String, nullable=False), prefixes=["TEMPORARY"]
)


def stored(text: str) -> str:
    """A token's text as the catalog has it.

    PostgreSQL has no character NUL: its picture U+2400 stands for it, on DuckDB as well. Of more
    than `MAX_LENGTH` characters the first are kept. Two tokens that look the same for that differ
    in their ids.
    """
    return readable(text)[:MAX_LENGTH]


def readable(text: str) -> str:
    """A text as both databases can have it: the picture of NUL in the place of NUL."""
    return text.replace(_NUL, _PICTURE_OF_NUL)


def with_ids(connection: Connection, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Put the ids of texts, as `stored` has them, in the place of texts; new ones get an id.

    Args:
        connection: In a transaction with no other writer beside it.
        rows: Any.
        columns: Those of the texts, `token` say; without NULL.

    Returns:
        The rows with columns of int32 in their place, `token_text_id` say.
    """
    for name in columns:
        encoded = rows[name].combine_chunks().dictionary_encode()
        spelled = [stored(text) for text in encoded.dictionary.to_pylist()]
        id_of = _ids(connection, set(spelled))
        ids = pa.array([id_of[text] for text in spelled], pa.int32()).take(encoded.indices)
        place = rows.column_names.index(name)
        rows = rows.set_column(place, f"{name}_text_id", ids)
    return rows


def _ids(connection: Connection, texts: set[str]) -> dict[str, int]:
    known = table(TokenText)
    _BROUGHT.create(connection)
    bulk.insert(connection, _BROUGHT, pa.table({"text": pa.array(texts, pa.string())}))
    is_known = exists().where(known.c.text == _BROUGHT.c.text)
    new = select(_BROUGHT.c.text).where(~is_known)
    connection.execute(insert(known).from_select(["text"], new))
    found = connection.execute(
        select(known.c.text, known.c.id).join(_BROUGHT, _BROUGHT.c.text == known.c.text)
    )
    ids = {text: key for text, key in found}  # noqa: C416 - rows are no pairs to a type checker
    _BROUGHT.drop(connection)
    return ids
