"""Count published scores, and tell whether anything was written

Revision ID: 0007
Revises: 0006
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNTED = """
    INSERT INTO measured (run_id, probe_id, metric_id, heads, defined)
    SELECT run_id, probe_id, metric_id, count(*), count(value)
    FROM score
    GROUP BY run_id, probe_id, metric_id
"""
MEASURED = """
    SELECT m.name AS model, k.name AS metric, p.name AS probe, c.heads, c.defined, c.run_id
    FROM measured c
    JOIN run r ON r.id = c.run_id
    JOIN model m ON m.id = r.model_id
    JOIN metric k ON k.id = c.metric_id
    JOIN probe p ON p.id = c.probe_id
"""
METRICS = """
    SELECT name AS metric, version, suite, unit, lower, upper, description, source,
           family, parameter, EXISTS (SELECT 1 FROM head_vector v WHERE v.metric_id = k.id)
           AS is_vector
    FROM metric k
    WHERE EXISTS (SELECT 1 FROM {counted} s WHERE s.metric_id = k.id)
       OR EXISTS (SELECT 1 FROM head_vector v WHERE v.metric_id = k.id)
"""


def upgrade() -> None:
    on_postgresql = op.get_context().dialect.name == "postgresql"
    op.create_table(
        "measured",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("probe_id", sa.Integer(), nullable=False),
        sa.Column("metric_id", sa.Integer(), nullable=False),
        sa.Column("heads", sa.Integer(), nullable=False),
        sa.Column("defined", sa.Integer(), nullable=False),
    )
    if on_postgresql:
        op.create_index(
            "uq_measured_run_probe_metric",
            "measured",
            ["run_id", "probe_id", "metric_id"],
            unique=True,
        )
    op.execute(COUNTED)
    state = op.create_table("state", sa.Column("stamp", sa.String(), nullable=False))
    op.bulk_insert(state, [{"stamp": secrets.token_hex(8)}])
    op.execute(f"CREATE VIEW coverage AS {MEASURED}")
    op.execute(f"CREATE OR REPLACE VIEW metrics AS {METRICS.format(counted='measured')}")


def downgrade() -> None:
    op.execute(f"CREATE OR REPLACE VIEW metrics AS {METRICS.format(counted='score')}")
    op.execute("DROP VIEW coverage")
    op.drop_table("state")
    op.drop_table("measured")
