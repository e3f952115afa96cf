"""Create the tables and views of stored attention patterns

Going back drops the rows; side files beside a DuckDB catalog go with the next write after the
tables are made again.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

VIEWS = {
    "stored_patterns": """
        SELECT m.name AS model, h.layer, h.head, p.name AS prompt, p.n_tokens, a.dtype,
               a.n_bytes AS bytes, a.max_error, a.run_id, r.finished_at AS added_at, a.prompt_id
        FROM attention_pattern a
        JOIN head h ON h.id = a.head_id
        JOIN model m ON m.id = h.model_id
        JOIN prompt p ON p.id = a.prompt_id
        JOIN run r ON r.id = a.run_id
    """,
    "prompt_tokens": """
        SELECT p.name AS prompt, t.position, t.token_id, t.text AS token, t.prompt_id
        FROM prompt_token t
        JOIN prompt p ON p.id = t.prompt_id
    """,
}


def upgrade() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.Column("n_tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
    )
    op.create_index("uq_prompt_content_hash", "prompt", ["content_hash"], unique=True)
    op.create_table(
        "prompt_token",
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
    )
    op.create_table(
        "attention_pattern",
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("max_error", sa.Double(), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=True),
        sa.Column("file_offset", sa.BigInteger(), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=True),
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "uq_prompt_token_prompt_id_position",
            "prompt_token",
            ["prompt_id", "position"],
            unique=True,
        )
        op.create_index(
            "uq_attention_pattern_head_id_prompt_id",
            "attention_pattern",
            ["head_id", "prompt_id"],
            unique=True,
        )
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.drop_table("attention_pattern")
    op.drop_table("prompt_token")
    op.drop_table("prompt")
