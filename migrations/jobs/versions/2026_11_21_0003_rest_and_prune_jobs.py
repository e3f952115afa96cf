"""Remember when a job was first begun and until when it rests, and what pruned jobs had counted

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
    for name in ("begun_at", "not_before"):
        op.add_column("job", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "job_past",
        sa.Column("suite", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("suite", "what", "detail", name=op.f("pk_job_past")),
    )
    op.execute("UPDATE job SET begun_at = started_at WHERE attempt > 0")
    # Twenty attempts were for those whom a killer met; time is given for them now.
    op.execute("UPDATE job SET max_attempts = 3 WHERE max_attempts = 20")


def downgrade() -> None:
    op.drop_table("job_past")
    for name in ("not_before", "begun_at"):
        op.drop_column("job", name)
