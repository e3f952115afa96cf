"""Stored attention patterns as readers meet them: which there are, and their numbers.

>>> from catalog import connect, patterns
>>> [one] = patterns.read(connect(), "gpt2", ["L5H5"], prompt="the cat sat")  # doctest: +SKIP
>>> one.tokens, one.numpy()  # doctest: +SKIP
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog import pattern_files, pattern_rows, queries
from catalog.catalog import Catalog
from catalog.database import Database
from catalog.errors import UsageError
from catalog.orm import AttentionPattern, PromptToken
from catalog.pattern_rows import Row
from catalog.sql import Result
from catalog.texts import readable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLACE = re.compile(r"L(?P<layer>\d{1,6})(H(?P<head>\d{1,6}))?", re.IGNORECASE)
_SHOWN = 60
"""Characters of a prompt in a message."""

Place = tuple[int, int | None]
"""A layer and a head; None: every head of the layer."""


@dataclass(frozen=True, kw_only=True)
class StoredPattern:
    """One head's attention on one prompt."""

    model: str
    layer: int
    head: int
    prompt: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    rows: pa.ListArray
    """Per query, the attention to each key up to itself; float32, within `max_error`."""
    max_error: float
    run_id: int

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}"

    def numpy(self) -> "NDArray[np.float32]":
        """The pattern [query, key] in float32; keys after their query are 0. Needs `numpy`."""
        import numpy as np  # noqa: PLC0415 - not part of the base install

        n = len(self.tokens)
        square = np.zeros((n, n), np.float32)
        square[np.tril_indices(n)] = self.rows.values.to_numpy(zero_copy_only=False)
        return square


def places(text: str) -> list[Place]:
    """The heads that a list such as `L5H5,L6H9` or `L5` (a whole layer) names, in its order.

    Raises:
        UsageError: If it names none, or a part of it is no head.
    """
    found: list[Place] = []
    for part in (part.strip() for part in text.split(",")):
        match = _PLACE.fullmatch(part)
        if match is None:
            raise UsageError(
                f"{part!r} is no head; write them like L5H3,L6H9 (or L5 for a whole layer), "
                "layer and head from 0"
            )
        head = match["head"]
        found.append((int(match["layer"]), None if head is None else int(head)))
    return list(dict.fromkeys(found))


def stored(catalog: Catalog, model: str | None = None) -> Result:
    """Which patterns the catalog has, of one model or of all.

    Returns:
        The view `stored_patterns` with the head's name: model, layer, head, name, prompt,
        n_tokens, dtype, bytes, max_error, run_id, added_at; by model, prompt, layer, head.
    """
    if model is not None:
        queries.require_model(catalog, model)
    condition, parameters = ("WHERE model = :model", {"model": model}) if model else ("", {})
    return catalog.sql(
        f"""
        SELECT model, layer, head, 'L' || layer || 'H' || head AS name, prompt, n_tokens, dtype,
               bytes, max_error, run_id, added_at
        FROM stored_patterns
        {condition}
        ORDER BY model, prompt, layer, head
        """,  # noqa: S608 - only fixed words are put in
        **parameters,
    )


def prompts(catalog: Catalog) -> Result:
    """Which prompts there are stored patterns of, for each model.

    Returns:
        model, prompt, n_tokens, heads (how many have a pattern), added_at (of the newest); by
        model, the newest first.
    """
    return catalog.sql(
        """
        SELECT model, prompt, max(n_tokens) AS n_tokens, count(*) AS heads,
               max(added_at) AS added_at
        FROM stored_patterns
        GROUP BY model, prompt
        ORDER BY model, added_at DESC, prompt
        """
    )


@dataclass(frozen=True)
class Found:
    """What there is of the patterns that were asked for."""

    patterns: list[StoredPattern]
    absent: list[Place]
    """Heads, or whole layers, that have none."""
    left_out: int
    """How many more there are than were to be read."""


def find(
    catalog: Catalog, wanted: Mapping[str, Sequence[str]], *, prompt: str, at_most: int
) -> dict[str, Found]:
    """What is stored of some heads on one prompt, like `read`, and what is not, by model.

    Args:
        catalog: Where to look.
        wanted: Of each model its heads, as `read` takes them.
        prompt: Its text or name.
        at_most: How many to read, of each model.

    Raises:
        UsageError: If what should be heads is none.
        StorageError: If a side file is missing or altered.
    """
    asked = {model: places(",".join(heads)) if heads else [] for model, heads in wanted.items()}
    with catalog.database.read_session() as session:
        there = pattern_rows.of_models(session, asked, readable(prompt))
        chosen = {model: _chosen(there[model], places) for model, places in asked.items()}
        shown = {model: rows[:at_most] for model, (rows, _) in chosen.items()}
        read = _read(catalog.database, session, shown)
    return {
        model: Found(read[model], absent, len(rows) - len(shown[model]))
        for model, (rows, absent) in chosen.items()
    }


def read(
    catalog: Catalog, model: str, heads: Sequence[str] = (), *, prompt: str | None = None
) -> list[StoredPattern]:
    """Patterns of one model on one prompt, in milliseconds.

    Args:
        catalog: Where to look.
        model: Its name.
        heads: Such as `L5H5`, or `L5` for all of that layer that are stored; all that are stored
            where none is named.
        prompt: Its text or name; the only one that the model has where None.

    Returns:
        In the order in which the heads are named, else by layer and head.

    Raises:
        UsageError: If there is no such model, prompt or head; it says what stores it.
        StorageError: If a side file is missing or altered.
    """
    wanted = places(",".join(heads)) if heads else []
    with catalog.database.read_session() as session:
        rows = pattern_rows.rows(session, model, None if prompt is None else readable(prompt))
        names = sorted({row.prompt for row in rows})
        chosen, absent = _chosen(rows, wanted)
        if len(names) == 1 and not absent:
            return _read(catalog.database, session, {model: chosen})[model]
    queries.require_model(catalog, model)
    if len(names) > 1:
        listed = ", ".join(map(_quoted, names))
        raise UsageError(
            f"{model} has patterns on several prompts, {listed}; choose one with --prompt"
        )
    raise UsageError(_missing(model, absent, prompt or next(iter(names), None)))


def cells(patterns: Sequence[StoredPattern], *, first: int = 0, last: int | None = None) -> Result:
    """Every number of some patterns, as a table.

    Args:
        patterns: As `read` gives them.
        first: The first position whose token is wanted, as query and as key.
        last: The last one; the prompt's where None.

    Returns:
        model, layer, head, name ('L5H3'), prompt, query, key (positions from 0), query_token,
        key_token, value (0 to 1): one row for each key that a query may attend to.
    """
    tables = []
    for one in patterns:
        count = len(one.rows.values)
        query = pc.list_parent_indices(one.rows)
        starts = pa.array([q * (q + 1) // 2 for q in range(len(one.tokens))])
        key = pc.subtract(pa.array(range(count)), pc.take(starts, query))
        tokens = pa.array(one.tokens, pa.string())
        fixed = {"model": one.model, "layer": one.layer, "head": one.head, "name": one.name}
        table = pa.table(
            {
                **{k: pa.repeat(v, count) for k, v in (fixed | {"prompt": one.prompt}).items()},
                "query": query,
                "key": key,
                "query_token": pc.take(tokens, query),
                "key_token": pc.take(tokens, key),
                "value": one.rows.values,
            }
        )
        # No key comes after its query.
        until = len(one.tokens) - 1 if last is None else last
        tables.append(table.filter((pc.field("key") >= first) & (pc.field("query") <= until)))
    return Result(pa.concat_tables(tables))


@dataclass(frozen=True)
class Deleted:
    """How many patterns went, and how many bytes of numbers they were."""

    patterns: int
    n_bytes: int


def delete(
    catalog: Catalog, model: str, heads: Sequence[str] = (), *, prompt: str | None = None
) -> Deleted:
    """Delete patterns of a model: of some heads or all, on one prompt or all.

    Raises:
        UsageError: If there is no such model, or nothing to delete.
    """
    queries.require_model(catalog, model)
    wanted = places(",".join(heads)) if heads else []
    database = catalog.database
    with database.transaction() as session:
        found = pattern_rows.rows(session, model, None if prompt is None else readable(prompt))
        going = [row for row in found if not wanted or _is_among(row.layer, row.head, wanted)]
        pattern_rows.discard(session, database, going)
    if not going:
        raise UsageError(
            f"{_missing(model, wanted, prompt)}; nothing is deleted, and "
            "`heads patterns-list` lists what there is"
        )
    pattern_rows.reclaim(database)
    return Deleted(len(going), sum(row.n_bytes for row in going))


def size(catalog: Catalog) -> Result:
    """What the catalog takes up: part (`tables`, `stored patterns` or `total`) and bytes.

    Of a DuckDB catalog the tables are its file, and the patterns its side files; of a server's,
    patterns are their table.
    """
    database = catalog.database
    with database.reading() as connection:
        if database.path is not None:
            beside = database.path.with_name(f"{database.path.name}.wal")
            files = [path for path in (database.path, beside) if path.exists()]
            tables = sum(path.stat().st_size for path in files)
            patterns = pattern_files.size(pattern_files.folder_of(database))
        else:
            tables, patterns = connection.exec_driver_sql(
                "SELECT pg_database_size(current_database()), "
                f"pg_total_relation_size('{AttentionPattern.__tablename__}')"
            ).one()
            tables -= patterns
    parts = {"tables": tables, "stored patterns": patterns, "total": tables + patterns}
    return Result(pa.table({"part": list(parts), "bytes": list(parts.values())}))


def _chosen(rows: Sequence[Row], wanted: Sequence[Place]) -> tuple[list[Row], list[Place]]:
    """The rows of heads in the order wanted, each once, and the heads that have none."""
    if not wanted:
        return list(rows), []
    found: dict[tuple[int, int], Row] = {}
    absent = []
    for place in wanted:
        of_place = [row for row in rows if _is_among(row.layer, row.head, [place])]
        found |= {(row.layer, row.head): row for row in of_place}
        if not of_place:
            absent.append(place)
    return list(found.values()), absent


def _read(
    database: Database, session: Session, rows: Mapping[str, Sequence[Row]]
) -> dict[str, list[StoredPattern]]:
    """The patterns behind rows, by model; each model's are on one prompt."""
    every = [row for of_model in rows.values() for row in of_model]
    found = session.execute(
        select(PromptToken.prompt_id, PromptToken.token_id, PromptToken.text)
        .where(PromptToken.prompt_id.in_({row.prompt_id for row in every}))
        .order_by(PromptToken.position)
    )
    # The same prompt has other tokens where a model has another tokenizer.
    tokens: dict[int, list[tuple[int, str]]] = {}
    for prompt_id, token_id, token in found:
        tokens.setdefault(prompt_id, []).append((token_id, token))
    contents = pattern_rows.contents(session, database, every)
    return {
        model: [
            _pattern(model, row, tokens[row.prompt_id], contents[row.head_id]) for row in of_model
        ]
        for model, of_model in rows.items()
    }


def _pattern(
    model: str, row: Row, tokens: Sequence[tuple[int, str]], content: bytes
) -> StoredPattern:
    starts = pa.array([q * (q + 1) // 2 for q in range(len(tokens) + 1)], pa.int32())
    return StoredPattern(
        model=model,
        layer=row.layer,
        head=row.head,
        prompt=row.prompt,
        token_ids=tuple(token_id for token_id, _ in tokens),
        tokens=tuple(token for _, token in tokens),
        rows=pa.ListArray.from_arrays(starts, _numbers(content)),
        max_error=row.max_error,
        run_id=row.run_id,
    )


def _numbers(content: bytes) -> pa.Array:
    stored = pa.Array.from_buffers(pa.float16(), len(content) // 2, [None, pa.py_buffer(content)])
    return stored.cast(pa.float32())


def _is_among(layer: int, head: int, wanted: Sequence[Place]) -> bool:
    return (layer, head) in wanted or (layer, None) in wanted


def _missing(model: str, absent: Sequence[Place], prompt: str | None) -> str:
    """What is not stored, and the command that stores it."""
    names = ",".join(f"L{layer}" + ("" if head is None else f"H{head}") for layer, head in absent)
    what = f"{names or 'any head'}{f' on {_quoted(prompt)}' if prompt is not None else ''}"
    text = "TEXT" if prompt is None else shlex.quote(prompt)
    return (
        f"{model} has no stored pattern of {what}; "
        f"`heads patterns CHECKPOINT --name {shlex.quote(model)} --heads {names or 'L0H0,L0H1'} "
        f"--prompt {text}` stores them"
    )


def _quoted(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}...")
