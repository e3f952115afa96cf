"""Create the views of vectors, compositions and salient operations; metrics that are lists

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

VIEWS = {
    "vectors": """
        SELECT m.name AS model, h.layer, h.head, k.name AS metric, p.name AS probe,
               v.numbers, v.run_id
        FROM head_vector v
        JOIN head h ON h.id = v.head_id
        JOIN model m ON m.id = h.model_id
        JOIN metric k ON k.id = v.metric_id
        JOIN probe p ON p.id = v.probe_id
    """,
    "compositions": """
        SELECT m.name AS model, h.layer, h.head, w.layer AS from_layer, w.head AS from_head,
               c.kind, c.value, c.run_id
        FROM composition c
        JOIN head h ON h.id = c.head_id
        JOIN head w ON w.id = c.from_head_id AND w.model_id = h.model_id
        JOIN model m ON m.id = h.model_id
    """,
    "salient_operations": """
        SELECT m.name AS model, h.layer, h.head, t.text AS token, o.token_rank, o.norm,
               o.direction, w.text AS output, o.output_rank, o.logit, o.run_id, o.token_id,
               o.output_id
        FROM salient_operation o
        JOIN token_text t ON t.id = o.token_text_id
        JOIN token_text w ON w.id = o.output_text_id
        JOIN head h ON h.id = o.head_id
        JOIN model m ON m.id = h.model_id
    """,
}

METRICS = """
    SELECT name AS metric, version, suite, unit, lower, upper, description, source,
           family, parameter, EXISTS (SELECT 1 FROM head_vector v WHERE v.metric_id = k.id)
           AS is_vector
    FROM metric k
    WHERE EXISTS (SELECT 1 FROM score s WHERE s.metric_id = k.id)
       OR EXISTS (SELECT 1 FROM head_vector v WHERE v.metric_id = k.id)
"""
METRICS_BEFORE = """
    SELECT name AS metric, version, suite, unit, lower, upper, description, source,
           family, parameter
    FROM metric k
    WHERE EXISTS (SELECT 1 FROM score s WHERE s.metric_id = k.id)
"""


def upgrade() -> None:
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    # In place, so that views which users have made over this one stay.
    op.execute(f"CREATE OR REPLACE VIEW metrics AS {METRICS}")


def downgrade() -> None:
    op.execute("DROP VIEW metrics")
    op.execute(f"CREATE VIEW metrics AS {METRICS_BEFORE}")
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
