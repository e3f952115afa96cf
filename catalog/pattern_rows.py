"""Writing stored attention patterns: inside a run's publication, and deleting them again."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Select, case, delete, insert, select, update
from sqlalchemy.orm import Session

from catalog import bulk, pattern_files, texts
from catalog.database import Database
from catalog.declarations import PromptPatterns
from catalog.errors import StorageError
from catalog.orm import AttentionPattern, Head, Model, Prompt, PromptToken, Run, table
from catalog.rows import Keys

SUITE = "stored_patterns"
DTYPE = "float16"
MAX_ERROR = 2.0**-12
"""float16 keeps 11 binary digits. From 1/2 to 1 its numbers lie 2^-11 apart and below that closer,
so that rounding to the nearest moves a probability by no more than half of that."""


@dataclass(frozen=True)
class Row:
    """Where one pattern of the catalog is, and how much it holds."""

    head_id: int
    prompt_id: int
    model_id: int
    layer: int
    head: int
    prompt: str
    run_id: int
    dtype: str
    max_error: float
    n_bytes: int
    sha256: str
    file: str | None
    file_offset: int | None

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}"


_ROWS = (
    select(
        AttentionPattern.head_id,
        AttentionPattern.prompt_id,
        Head.model_id,
        Head.layer,
        Head.head,
        Prompt.name,
        AttentionPattern.run_id,
        AttentionPattern.dtype,
        AttentionPattern.max_error,
        AttentionPattern.n_bytes,
        AttentionPattern.sha256,
        AttentionPattern.file,
        AttentionPattern.file_offset,
    )
    .join(Head, Head.id == AttentionPattern.head_id)
    .join(Model, Model.id == Head.model_id)
    .join(Prompt, Prompt.id == AttentionPattern.prompt_id)
    .order_by(AttentionPattern.prompt_id, Head.layer, Head.head)
)


def content_hash(prompt: PromptPatterns) -> str:
    """Equal where a prompt has the same name and the same tokens."""
    named = [texts.readable(prompt.prompt), list(prompt.token_ids), list(prompt.tokens)]
    return f"sha256:{hashlib.sha256(json.dumps(named).encode()).hexdigest()}"


def known(
    database: Database, model: str, revision: str | None, dtype: str, prompt: PromptPatterns
) -> dict[tuple[int, int], int]:
    """The patterns on a prompt that measuring again would only repeat: layer and head -> run id.

    Args:
        database: A catalog.
        model: Its name.
        revision: Of the model.
        dtype: In which the model would run.
        prompt: Its patterns do not matter.
    """
    with database.read_session() as session:
        found = session.execute(
            select(Head.layer, Head.head, AttentionPattern.run_id)
            .join(AttentionPattern, AttentionPattern.head_id == Head.id)
            .join(Model, Model.id == Head.model_id)
            .join(Prompt, Prompt.id == AttentionPattern.prompt_id)
            .join(Run, Run.id == AttentionPattern.run_id)
            .where(
                Model.name == model,
                Model.revision == revision,
                Prompt.content_hash == content_hash(prompt),
                Run.dtype == dtype,
            )
        )
        return {(layer, head): run_id for layer, head, run_id in found}


def store(
    session: Session, database: Database, keys: Keys, prompts: Sequence[PromptPatterns]
) -> bool:
    """Put a run's patterns beside those that the model has, or in the place of the same ones.

    What the model has on a prompt of the same name, but with other tokens or of another revision,
    goes: readers never see two revisions on one prompt.

    Returns:
        Whether something gave way, so that there is space for `reclaim` to give back.

    Raises:
        ValueError: If a pattern is not as declared: its length, its type, a number not finite or
            not from 0 to 1, a head not the model's, as many ids as tokens. Nothing changes then.
        StorageError: If a side file cannot be written.
    """
    sweep(session, database)
    run = session.get_one(Run, keys.run_id)
    model = session.get_one(Model, run.model_id)
    has_removed = False
    for one in prompts:
        contents = {place: _content(one, place, keys) for place in one.patterns}
        ids = {place: _head_id(place, keys) for place in one.patterns}
        prompt_id = _prompt_id(session, one)
        going = [
            row
            for row in rows(session, model.name, texts.readable(one.prompt))
            if (row.prompt_id, row.model_id) != (prompt_id, model.id) or row.head_id in ids.values()
        ]
        remove(session, database, going)
        has_removed |= bool(going)
        new = [
            {
                "head_id": ids[place],
                "prompt_id": prompt_id,
                "run_id": run.id,
                "dtype": DTYPE,
                "max_error": MAX_ERROR,
                "n_bytes": len(content),
                "sha256": pattern_files.checksum(content),
            }
            for place, content in contents.items()
        ]
        named = {f"L{layer}H{head}": content for (layer, head), content in contents.items()}
        put(session, database, new, named)
    _prune_prompts(session)
    return has_removed


def rows(session: Session, model: str, prompt: str | None = None) -> list[Row]:
    """Where a model's patterns are, on all prompts or on one, by prompt, layer and head."""
    found = _ROWS.where(Model.name == model)
    return _found(session, found if prompt is None else found.where(Prompt.name == prompt))


def of_models(session: Session, models: Collection[str], prompt: str) -> dict[str, list[Row]]:
    """Where the patterns of each of some models on one prompt are, by layer and head."""
    found: dict[str, list[Row]] = {model: [] for model in models}
    query = _ROWS.add_columns(Model.name).where(Model.name.in_(models), Prompt.name == prompt)
    for *facts, model in session.execute(query):
        found[model].append(Row(*facts))
    return found


def on_prompt(session: Session, prompt_id: int) -> list[Row]:
    """Where the patterns on a prompt are, of all models, by layer and head."""
    return _found(session, _ROWS.where(AttentionPattern.prompt_id == prompt_id))


def contents(session: Session, database: Database, found: Sequence[Row]) -> dict[int, bytes]:
    """The bytes of patterns, of each head on one prompt, by head id.

    Raises:
        StorageError: If a side file is missing, or a pattern is not as it was written.
    """
    read = {}
    if in_rows := [row for row in found if row.file is None]:
        query = select(AttentionPattern.head_id, AttentionPattern.content).where(
            AttentionPattern.prompt_id.in_({row.prompt_id for row in in_rows}),
            AttentionPattern.head_id.in_([row.head_id for row in in_rows]),
        )
        read = {head_id: content or b"" for head_id, content in session.execute(query)}
    for row in found:
        if row.file is not None:
            read[row.head_id] = in_file(database, row)
        elif pattern_files.checksum(read[row.head_id]) != row.sha256:
            raise StorageError(
                f"the pattern of {row.name} on {row.prompt!r} is not as the catalog wrote it; "
                "store it again with `heads patterns --force`"
            )
    return read


def in_file(database: Database, row: Row) -> bytes:
    """A pattern's bytes, of a row that names a file.

    Raises:
        StorageError: If the file is missing or altered.
    """
    assert row.file is not None  # noqa: S101 - narrows the type
    assert row.file_offset is not None  # noqa: S101 - narrows the type
    # Only the name: a catalog that somebody else made must not lead out of its folder.
    path = pattern_files.folder_of(database) / Path(row.file).name
    return pattern_files.read(path, row.file_offset, row.n_bytes, row.sha256)


def remove(session: Session, database: Database, going: Collection[Row]) -> None:
    """Delete rows; what is left of their files moves to new ones, the old remain for `reclaim`."""
    for prompt_id in {row.prompt_id for row in going}:
        heads = [row.head_id for row in going if row.prompt_id == prompt_id]
        session.execute(
            delete(AttentionPattern).where(
                AttentionPattern.prompt_id == prompt_id, AttentionPattern.head_id.in_(heads)
            )
        )
    for file in {row.file for row in going if row.file is not None}:
        _rewrite(session, database, file)


def discard(session: Session, database: Database, going: Collection[Row]) -> None:
    """Delete rows, and the prompts that have no pattern any more."""
    remove(session, database, going)
    _prune_prompts(session)


def reclaim(database: Database) -> None:
    """Give back the space of deleted patterns."""
    if database.is_duckdb:
        with database.transaction() as session:
            sweep(session, database)
        return
    with database.writing() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.exec_driver_sql(f"VACUUM {AttentionPattern.__tablename__}")


def sweep(session: Session, database: Database) -> None:
    """Remove side files that no row names, where there are side files.

    Only before this transaction deletes rows: were it undone, they would name what is gone.
    """
    if not database.is_duckdb:
        return
    named = {
        file
        for file in session.scalars(select(AttentionPattern.file).distinct())
        if file is not None
    }
    pattern_files.sweep(pattern_files.folder_of(database), named)


def put(
    session: Session, database: Database, new: Sequence[dict[str, Any]], named: Mapping[str, bytes]
) -> None:
    """Put rows and their contents, in the same order, where this database has its contents.

    Args:
        session: In a transaction.
        database: The session's.
        new: Rows on one prompt, without a place.
        named: What a side file calls each content.
    """
    if not database.is_duckdb:
        contents = zip(new, named.values(), strict=True)
        filled = [row | {"content": content} for row, content in contents]
        session.execute(insert(AttentionPattern), filled)
        return
    file, offsets = pattern_files.write(pattern_files.folder_of(database), named)
    placed = [
        row | {"file": file, "file_offset": offset}
        for row, offset in zip(new, offsets.values(), strict=True)
    ]
    # As a whole: row by row DuckDB would take 20 ms for each.
    bulk.insert(session.connection(), table(AttentionPattern), pa.Table.from_pylist(placed))


def _rewrite(session: Session, database: Database, file: str) -> None:
    staying = _found(session, _ROWS.where(AttentionPattern.file == file))
    try:
        contents = {row.name: in_file(database, row) for row in staying}
    except StorageError:
        # What cannot be read cannot be moved: whoever asks for it is told which file is broken.
        return
    if not staying:
        return
    name, offsets = pattern_files.write(pattern_files.folder_of(database), contents)
    # One statement for all, as in `put`; a file is of one prompt, where a head comes once.
    offset_of = {row.head_id: offsets[row.name] for row in staying}
    session.execute(
        update(AttentionPattern)
        .where(AttentionPattern.file == file)
        .values(file=name, file_offset=case(offset_of, value=AttentionPattern.head_id))
        .execution_options(synchronize_session=False)
    )


def _found(session: Session, query: Select[*tuple[Any, ...]]) -> list[Row]:
    return [Row(*row) for row in session.execute(query)]


def _prompt_id(session: Session, one: PromptPatterns) -> int:
    hashed, count = content_hash(one), len(one.token_ids)
    if len(one.tokens) != count:
        raise ValueError(f"{one.prompt!r} has {count} token ids and {len(one.tokens)} texts")
    prompt_id = session.scalars(select(Prompt.id).where(Prompt.content_hash == hashed)).first()
    if prompt_id is not None:
        return prompt_id
    prompt = Prompt(name=texts.readable(one.prompt), content_hash=hashed, n_tokens=count)
    session.add(prompt)
    session.flush()
    tokens = pa.table(
        {
            "prompt_id": pa.array([prompt.id] * count, pa.int32()),
            "position": pa.array(range(count), pa.int32()),
            "token_id": pa.array(one.token_ids, pa.int32()),
            "text": pa.array([texts.readable(text) for text in one.tokens], pa.string()),
        }
    )
    bulk.insert(session.connection(), table(PromptToken), tokens)
    return prompt.id


def _prune_prompts(session: Session) -> None:
    used = select(AttentionPattern.prompt_id)
    session.execute(delete(PromptToken).where(PromptToken.prompt_id.not_in(used)))
    session.execute(delete(Prompt).where(Prompt.id.not_in(used)))


def _head_id(place: tuple[int, int], keys: Keys) -> int:
    layer, head = place
    if not (0 <= layer < keys.n_layers and 0 <= head < keys.n_heads):
        raise ValueError(
            f"L{layer}H{head}: expected one of {keys.n_layers} layers of {keys.n_heads} heads"
        )
    return int(keys.heads[layer * keys.n_heads + head].as_py())


def _content(one: PromptPatterns, place: tuple[int, int], keys: Keys) -> bytes:
    """One pattern's bytes, once it is seen to be one."""
    _head_id(place, keys)
    values, n = one.patterns[place], len(one.token_ids)
    where = f"L{place[0]}H{place[1]} on {one.prompt!r}"
    if values.type != pa.float16() or len(values) != n * (n + 1) // 2 or values.null_count:
        raise ValueError(
            f"{where}: expected {n * (n + 1) // 2} float16 numbers for {n} tokens, "
            f"got {len(values)} of {values.type}"
        )
    numbers = values.cast(pa.float32())
    if not pc.all(pc.and_(pc.greater_equal(numbers, 0), pc.less_equal(numbers, 1))).as_py():
        raise ValueError(f"{where}: expected numbers from 0 to 1")
    start = values.offset * 2
    return values.buffers()[1][start : start + len(values) * 2].to_pybytes()
