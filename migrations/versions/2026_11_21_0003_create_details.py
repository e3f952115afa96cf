"""Create the tables of vectors, compositions and salient operations

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "head_vector",
        sa.Column("metric_id", sa.Integer(), nullable=False),
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("probe_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("numbers", sa.ARRAY(sa.REAL()), nullable=True),
    )
    op.create_table(
        "composition",
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("from_head_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
    )
    op.create_table(
        "token_text",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_text")),
    )
    op.create_table(
        "salient_operation",
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("token_rank", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("token_text_id", sa.Integer(), nullable=False),
        sa.Column("norm", sa.Double(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("output_rank", sa.Integer(), nullable=False),
        sa.Column("output_id", sa.Integer(), nullable=False),
        sa.Column("output_text_id", sa.Integer(), nullable=False),
        sa.Column("logit", sa.Double(), nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "uq_head_vector_metric_head_probe",
            "head_vector",
            ["metric_id", "head_id", "probe_id"],
            unique=True,
        )
        op.create_index("ix_composition_head_id", "composition", ["head_id"])
        op.create_index("ix_composition_from_head_id", "composition", ["from_head_id"])
        op.create_index("uq_token_text_text", "token_text", ["text"], unique=True)
        for column in ("head_id", "token_text_id", "output_text_id"):
            op.create_index(f"ix_salient_operation_{column}", "salient_operation", [column])


def downgrade() -> None:
    op.drop_table("salient_operation")
    op.drop_table("token_text")
    op.drop_table("composition")
    op.drop_table("head_vector")
