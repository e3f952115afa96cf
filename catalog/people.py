"""What people bring: models known by their layout, and labels made by hand or published."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from catalog.database import Database
from catalog.declarations import ModelSpec
from catalog.errors import InputError, UsageError
from catalog.orm import Head, HeadLabel, Model
from catalog.publishing import head_rows, require_name
from catalog.rules import ensure_label, ensure_taxonomy

COLUMNS = ("model", "layer", "head", "taxonomy", "label")
MAX_SIZE = 4_096
"""Of layers, and of heads in a layer: no model comes near."""
SOURCES = ("human", "model", "published")


def add_layout(database: Database, spec: ModelSpec) -> None:
    """Make a model known by its layout alone, so that labels can be attached to its heads.

    Raises:
        UsageError: If the sizes are not positive, do not divide, or the name is taken.
    """
    require_name(spec.name)
    kv_heads = 1 if spec.n_kv_heads is None else spec.n_kv_heads
    sizes = (spec.n_layers, spec.n_heads, kv_heads)
    if min(sizes) < 1 or max(sizes) > MAX_SIZE:
        raise UsageError(f"{spec.name}: layers and heads must be from 1 to {MAX_SIZE}")
    if spec.n_heads % kv_heads:
        raise UsageError(
            f"{spec.name}: {spec.n_heads} heads cannot share {spec.n_kv_heads} KV heads evenly"
        )
    with database.transaction() as session:
        taken = session.scalars(select(Model).where(Model.name == spec.name)).first()
        if taken is not None:
            raise UsageError(
                f"the catalog has a model {spec.name} already "
                f"({taken.n_layers} layers of {taken.n_heads} heads)"
            )
        model = Model(**vars(spec), is_current=True, added_at=datetime.now(UTC))
        session.add(model)
        session.flush()
        session.execute(insert(Head), head_rows(spec, model.id))


@dataclass(frozen=True)
class _Row:
    line: int
    model: str
    layer: int
    head: int
    taxonomy: str
    label: str
    source: str
    confidence: float | None


@dataclass(frozen=True)
class Imported:
    """How many labels a file brought, and how many of its lines the catalog had already."""

    added: int
    known: int


def import_labels(database: Database, path: Path, *, source: str, reviewer: str | None) -> Imported:
    """Bring labels from a CSV file: all of its lines, or none.

    Args:
        database: A catalog that has the models.
        path: CSV with a header and the columns model, layer, head, taxonomy, label; optionally
            source (human, model or published) and confidence (0 to 1).
        source: For lines that state none.
        reviewer: Kept as the reason of every label.

    Raises:
        InputError: At the first line that cannot be meant, named by its number.
    """
    rows = list(_read(path, source))
    with database.transaction() as session:
        heads = _heads(session, {row.model for row in rows})
        for row in rows:
            if (row.model, row.layer, row.head) not in heads:
                raise InputError(f"{path}, line {row.line}: {_absent(row, heads)}")
        existing = _existing(session, {row.model for row in rows})
        labels: dict[tuple[str, str], int] = {}
        added = 0
        for row in rows:
            name = (row.taxonomy, row.label)
            if name not in labels:
                taxonomy = ensure_taxonomy(session, row.taxonomy, f"imported from {path.name}")
                labels[name] = ensure_label(session, taxonomy, row.label)
            head_id, label_id = heads[row.model, row.layer, row.head], labels[name]
            key = (row.model, row.layer, row.head, label_id, row.source)
            if key in existing:
                continue
            existing.add(key)
            added += 1
            session.add(
                HeadLabel(
                    head_id=head_id,
                    label_id=label_id,
                    source=row.source,
                    confidence=row.confidence,
                    reason=reviewer,
                    added_at=datetime.now(UTC),
                )
            )
        return Imported(added=added, known=len(rows) - added)


def _read(path: Path, source: str) -> Iterator[_Row]:
    if source not in SOURCES:
        raise UsageError(f"{source!r} is no source of labels; expected one of {', '.join(SOURCES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"{path} lacks the column {', '.join(missing)}; expected {', '.join(COLUMNS)}"
            )
        for record in reader:
            yield _row(record, f"{path}, line {reader.line_num}", reader.line_num, source)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.reader.line_num}: {error}") from error


def _row(record: dict[str, str | None], where: str, line: int, source: str) -> _Row:
    values = {name: (value or "").strip() for name, value in record.items() if name}
    unusable = [name for name in COLUMNS if not values[name] or not values[name].isprintable()]
    if unusable:
        raise InputError(
            f"{where}: {', '.join(unusable)} is empty or has characters that cannot be printed"
        )
    try:
        layer, head = int(values["layer"]), int(values["head"])
        confidence = float(values["confidence"]) if values.get("confidence") else None
    except ValueError as error:
        raise InputError(f"{where}: expected a number: {error}") from None
    if confidence is not None and not 0 <= confidence <= 1:
        raise InputError(f"{where}: confidence {confidence:g} is not between 0 and 1")
    stated = values.get("source") or source
    if stated not in SOURCES:
        raise InputError(f"{where}: source {stated!r} is none of {', '.join(SOURCES)}")
    return _Row(
        line,
        values["model"],
        layer,
        head,
        values["taxonomy"],
        values["label"],
        stated,
        confidence,
    )


def _heads(session: Session, models: set[str]) -> dict[tuple[str, int, int], int]:
    query = (
        select(Model.name, Head.layer, Head.head, Head.id)
        .join(Head, Head.model_id == Model.id)
        .where(Model.is_current, Model.name.in_(models))
    )
    return {(name, layer, head): key for name, layer, head, key in session.execute(query)}


def _absent(row: _Row, heads: dict[tuple[str, int, int], int]) -> str:
    layout = [place for place in heads if place[0] == row.model]
    if not layout:
        return (
            f"the catalog has no model {row.model!r}; ingest it, or make its layout known with "
            f"`heads models add {row.model!r} --layers N --heads N`"
        )
    layers, per_layer = (
        1 + max(places)
        for places in zip(*((layer, head) for _, layer, head in layout), strict=True)
    )
    return (
        f"{row.model} has {layers} layers of {per_layer} heads, counted from 0, "
        f"and no L{row.layer}H{row.head}"
    )


def _existing(session: Session, models: set[str]) -> set[tuple[str, int, int, int, str]]:
    """Model, layer, head, label id and source of the labels there are, in whichever revision."""
    query = (
        select(Model.name, Head.layer, Head.head, HeadLabel.label_id, HeadLabel.source)
        .join(Head, Head.model_id == Model.id)
        .join(HeadLabel, HeadLabel.head_id == Head.id)
        .where(HeadLabel.retired_at.is_(None), Model.name.in_(models))
    )
    return {
        (name, layer, head, label, source)
        for name, layer, head, label, source in session.execute(query)
    }
