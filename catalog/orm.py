"""The catalog's tables.

Tables are named in the singular; the stable views over them, which users query, in the plural
(`models`, `heads`, `scores` ...; see the README). Two facts about DuckDB shape this file:
its foreign keys refuse ordinary updates, so they exist on PostgreSQL only (see
`catalog.dialects`), and a primary key on the fact table would cost more than it gives.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
POSTGRESQL_ONLY = {"dialects": ("postgresql",)}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own idiom
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSON,
        float: Double,
        str: String,
    }


class Model(Base):
    """One revision of one language model; readers see the revision with `is_current`."""

    __tablename__ = "model"
    __table_args__ = (Index("uq_model_name_revision", "name", "revision", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    revision: Mapped[str | None]
    """Hub commit or content hash; NULL while the model is known by its layout only."""
    content_hash: Mapped[str | None]
    """Of configuration, weights and tokenizer, wherever they came from."""
    architecture: Mapped[str | None]
    n_layers: Mapped[int]
    n_heads: Mapped[int]
    n_kv_heads: Mapped[int | None]
    d_model: Mapped[int | None]
    d_head: Mapped[int | None]
    vocab_size: Mapped[int | None]
    n_params: Mapped[int | None] = mapped_column(BigInteger)
    base_model: Mapped[str | None]
    dtype: Mapped[str | None]
    quantization: Mapped[str | None]
    source: Mapped[str | None]
    is_current: Mapped[bool]
    added_at: Mapped[datetime]

    heads: Mapped[list["Head"]] = relationship(back_populates="model")


class Head(Base):
    """One query head."""

    __tablename__ = "head"
    __table_args__ = (Index("uq_head_model_layer_head", "model_id", "layer", "head", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    layer: Mapped[int]
    head: Mapped[int]
    kv_head: Mapped[int | None]

    model: Mapped[Model] = relationship(back_populates="heads")


class Metric(Base):
    """A metric as declared in code; a parameter, where it has one, stands in brackets."""

    __tablename__ = "metric"
    __table_args__ = (Index("uq_metric_name", "name", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    family: Mapped[str]
    parameter: Mapped[str | None]
    version: Mapped[int]
    suite: Mapped[str]
    unit: Mapped[str]
    lower: Mapped[float | None]
    upper: Mapped[float | None]
    description: Mapped[str]
    source: Mapped[str]


class Probe(Base):
    """An input of a suite: named, versioned, hashed."""

    __tablename__ = "probe"
    __table_args__ = (Index("uq_probe_name_content_hash", "name", "content_hash", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    kind: Mapped[str]
    content_hash: Mapped[str]
    seed: Mapped[int | None]
    description: Mapped[str]


class Relation(Base):
    """A relation of a probe that is a relation set."""

    __tablename__ = "relation"

    probe_id: Mapped[int] = mapped_column(
        ForeignKey("probe.id"), primary_key=True, autoincrement=False
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    category: Mapped[str | None]
    k: Mapped[int]
    n_pairs: Mapped[int]
    """Pairs in the set; how many a model's tokenizer can use stands in its run's notes."""


class Run(Base):
    """One execution of one suite on one model revision, with all its provenance."""

    __tablename__ = "run"
    __table_args__ = (Index("ix_run_model_id_suite", "model_id", "suite"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    suite: Mapped[str]
    status: Mapped[str]
    """`running`, `succeeded` or `failed`."""
    params: Mapped[dict[str, Any]]
    device: Mapped[str | None]
    dtype: Mapped[str | None]
    versions: Mapped[dict[str, Any]]
    """Of the code, of the packages and of every metric measured."""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    seconds: Mapped[float | None]
    peak_memory: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes: of the process, or of the device where it has its own memory."""
    notes: Mapped[dict[str, Any] | None]
    """What was skipped and why; counts of what was measured."""
    error: Mapped[str | None]
    host: Mapped[str]
    pid: Mapped[int]
    process_started: Mapped[float]
    """Seconds since the epoch: with host and pid, tells a living process from its successor."""


class RunProbe(Base):
    """The probes of a run; readers see the run that has published a probe last."""

    __tablename__ = "run_probe"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True, autoincrement=False)
    probe_id: Mapped[int] = mapped_column(
        ForeignKey("probe.id"), primary_key=True, autoincrement=False
    )
    key: Mapped[str]
    """Equal keys mean equal measurements: model revision, suite, metric versions, probe, dtype."""
    is_published: Mapped[bool]


class Score(Base):
    """The published scores: one row per metric, head and probe. NULL is `undefined`."""

    __tablename__ = "score"
    __table_args__ = (
        Index(
            "uq_score_metric_head_probe",
            "metric_id",
            "head_id",
            "probe_id",
            unique=True,
            info=POSTGRESQL_ONLY,
        ).ddl_if(dialect="postgresql"),
        Index("ix_score_value", "value", info=POSTGRESQL_ONLY).ddl_if(dialect="postgresql"),
        {"postgresql_partition_by": "LIST (metric_id)"},
    )
    metric_id: Mapped[int] = mapped_column()
    head_id: Mapped[int] = mapped_column()
    probe_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    value: Mapped[float | None]

    __mapper_args__ = {"primary_key": [metric_id, head_id, probe_id]}  # noqa: RUF012


class ScoreHistory(Base):
    """Scores of runs that a later run has replaced; same columns as `score`."""

    __tablename__ = "score_history"

    metric_id: Mapped[int] = mapped_column()
    head_id: Mapped[int] = mapped_column()
    probe_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    value: Mapped[float | None]

    __mapper_args__ = {"primary_key": [metric_id, head_id, probe_id, run_id]}  # noqa: RUF012


class Measured(Base):
    """How many scores a run has published of a metric on a probe: what `score` would be asked for.

    Written and withdrawn with them, so that nobody has to count millions of rows.
    """

    __tablename__ = "measured"
    __table_args__ = (
        Index(
            "uq_measured_run_probe_metric",
            "run_id",
            "probe_id",
            "metric_id",
            unique=True,
            info=POSTGRESQL_ONLY,
        ).ddl_if(dialect="postgresql"),
    )

    run_id: Mapped[int] = mapped_column()
    probe_id: Mapped[int] = mapped_column()
    metric_id: Mapped[int] = mapped_column()
    heads: Mapped[int]
    """With a row in `score`."""
    defined: Mapped[int]
    """Of these, with a value."""

    __mapper_args__ = {"primary_key": [run_id, probe_id, metric_id]}  # noqa: RUF012


class HeadVector(Base):
    """The published lists of numbers: one row per metric, head and probe. NULL is `undefined`."""

    __tablename__ = "head_vector"
    __table_args__ = (
        Index(
            "uq_head_vector_metric_head_probe",
            "metric_id",
            "head_id",
            "probe_id",
            unique=True,
            info=POSTGRESQL_ONLY,
        ).ddl_if(dialect="postgresql"),
    )

    metric_id: Mapped[int] = mapped_column()
    head_id: Mapped[int] = mapped_column()
    probe_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    numbers: Mapped[list[float] | None] = mapped_column(ARRAY(REAL))

    __mapper_args__ = {"primary_key": [metric_id, head_id, probe_id]}  # noqa: RUF012


class Composition(Base):
    """How much a head reads of what an earlier head of its model writes, as published."""

    __tablename__ = "composition"
    __table_args__ = (
        Index("ix_composition_head_id", "head_id", info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
        Index("ix_composition_from_head_id", "from_head_id", info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
    )

    head_id: Mapped[int] = mapped_column()
    from_head_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    kind: Mapped[str] = mapped_column()
    """`query`, `key` or `value`: which of the head's readings."""
    value: Mapped[float]

    __mapper_args__ = {"primary_key": [head_id, from_head_id, kind]}  # noqa: RUF012


class TokenText(Base):
    """What a token looks like, each text once: numbers are compared many times faster."""

    __tablename__ = "token_text"
    __table_args__ = (
        Index("uq_token_text_text", "text", unique=True, info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class SalientOperation(Base):
    """A token that a head amplifies, and one of the outputs that it maps it to, as published."""

    __tablename__ = "salient_operation"
    __table_args__ = (
        Index("ix_salient_operation_head_id", "head_id", info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
        Index("ix_salient_operation_token_text_id", "token_text_id", info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
        Index("ix_salient_operation_output_text_id", "output_text_id", info=POSTGRESQL_ONLY).ddl_if(
            dialect="postgresql"
        ),
    )

    head_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    token_rank: Mapped[int] = mapped_column()
    """0: the token that the head amplifies most."""
    token_id: Mapped[int] = mapped_column()
    """In the model's own vocabulary."""
    token_text_id: Mapped[int] = mapped_column()
    norm: Mapped[float]
    direction: Mapped[str] = mapped_column()
    """`promoted` or `suppressed`."""
    output_rank: Mapped[int] = mapped_column()
    """0: the largest logit where promoted, the smallest where suppressed."""
    output_id: Mapped[int] = mapped_column()
    output_text_id: Mapped[int] = mapped_column()
    logit: Mapped[float]

    __mapper_args__ = {  # noqa: RUF012
        "primary_key": [head_id, token_rank, direction, output_rank]
    }


class Prompt(Base):
    """A text or token sequence on which patterns are stored, as one tokenizer splits it."""

    __tablename__ = "prompt"
    __table_args__ = (Index("uq_prompt_content_hash", "content_hash", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    """The text itself, or what its file calls it."""
    content_hash: Mapped[str]
    """Of the name, the token ids and their texts."""
    n_tokens: Mapped[int]


class PromptToken(Base):
    __tablename__ = "prompt_token"
    __table_args__ = (
        Index(
            "uq_prompt_token_prompt_id_position",
            "prompt_id",
            "position",
            unique=True,
            info=POSTGRESQL_ONLY,
        ).ddl_if(dialect="postgresql"),
    )

    prompt_id: Mapped[int] = mapped_column()
    position: Mapped[int] = mapped_column()
    token_id: Mapped[int] = mapped_column()
    text: Mapped[str]

    __mapper_args__ = {"primary_key": [prompt_id, position]}  # noqa: RUF012


class AttentionPattern(Base):
    """A head's whole pattern on a prompt: its numbers lie in a file or, on a server, in the row."""

    __tablename__ = "attention_pattern"
    __table_args__ = (
        Index(
            "uq_attention_pattern_head_id_prompt_id",
            "head_id",
            "prompt_id",
            unique=True,
            info=POSTGRESQL_ONLY,
        ).ddl_if(dialect="postgresql"),
    )

    head_id: Mapped[int] = mapped_column()
    prompt_id: Mapped[int] = mapped_column()
    run_id: Mapped[int] = mapped_column()
    dtype: Mapped[str] = mapped_column()
    """Of the stored numbers: `float16`."""
    max_error: Mapped[float]
    """No stored number lies further from what was measured."""
    n_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    """Of the stored bytes of this one pattern."""
    file: Mapped[str | None]
    """Name of the side file in the catalog's folder of patterns; NULL on a server."""
    file_offset: Mapped[int | None] = mapped_column(BigInteger)
    content: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The bytes themselves; NULL where there is a file."""

    __mapper_args__ = {"primary_key": [head_id, prompt_id]}  # noqa: RUF012


class Taxonomy(Base):
    """A named set of labels, with the rules that assign them where there are any."""

    __tablename__ = "taxonomy"
    __table_args__ = (Index("uq_taxonomy_name", "name", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    description: Mapped[str]
    rules: Mapped[dict[str, Any] | None]


class Label(Base):
    __tablename__ = "label"
    __table_args__ = (Index("uq_label_taxonomy_id_name", "taxonomy_id", "name", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    taxonomy_id: Mapped[int] = mapped_column(ForeignKey("taxonomy.id"))
    name: Mapped[str]
    description: Mapped[str | None]


class HeadLabel(Base):
    """A label on a head; readers see those that are not retired."""

    __tablename__ = "head_label"
    __table_args__ = (Index("ix_head_label_head_id", "head_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    head_id: Mapped[int] = mapped_column(ForeignKey("head.id"))
    label_id: Mapped[int] = mapped_column(ForeignKey("label.id"))
    source: Mapped[str]
    """`rule`, `human`, `model` or `published`."""
    confidence: Mapped[float | None]
    reason: Mapped[str | None]
    """The rule that gave it, or who did."""
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    added_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]


class State(Base):
    """One row: what the catalog is at now."""

    __tablename__ = "state"
    __table_args__ = {"info": {"is_copied": False}}  # noqa: RUF012

    stamp: Mapped[str] = mapped_column()
    """Another one after every transaction that writes; never one that was there before, whatever
    becomes of the file."""

    __mapper_args__ = {"primary_key": [stamp]}  # noqa: RUF012


def table(entity: type[Base]) -> Table:
    """The Core table of a mapped class, typed as what it is."""
    mapped = entity.__table__
    assert isinstance(mapped, Table)  # noqa: S101 - narrows the type; all our classes map tables
    return mapped
