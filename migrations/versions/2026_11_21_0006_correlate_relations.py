"""Create the view that correlates relation scores of weights with those of runs

Revision ID: 0006
Revises: 0004
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# A template's probe is named by its relation set and, after the last colon, the template. The
# database computes no correlation where either score is the same for all heads: DuckDB and
# PostgreSQL differ in what they say of that, and rounding may hide it from both.
RELATION_CORRELATIONS = """
    WITH compared AS (
        SELECT d.id AS dynamic_id, s.id AS static_id, d.parameter AS relation, f.context,
               f.direction
        FROM (VALUES
            ('dynamic_score', 'relation_score', 'with', 'promoted'),
            ('dynamic_suppression', 'relation_suppression', 'with', 'suppressed'),
            ('dynamic_score_without_context', 'relation_score', 'without', 'promoted'),
            ('dynamic_suppression_without_context', 'relation_suppression', 'without',
             'suppressed')
        ) AS f (dynamic_family, static_family, context, direction)
        JOIN metric d ON d.family = f.dynamic_family
        JOIN metric s ON s.family = f.static_family AND s.parameter = d.parameter
    ), templates AS (
        SELECT id, name, split_part(name, ':', -1) AS template
        FROM probe
        WHERE kind = 'relation_prompts'
    ), prompted AS (
        SELECT t.id AS dynamic_id, s.id AS static_id, s.name AS probe, t.template
        FROM templates t
        JOIN probe s ON s.name = left(t.name, length(t.name) - length(t.template) - 1)
        WHERE s.kind = 'relations'
    ), pooled AS (
        SELECT dynamic_id, static_id, probe, template FROM prompted
        UNION ALL
        SELECT dynamic_id, static_id, probe, 'all' FROM prompted
    )
    SELECT m.name AS model, k.relation, p.probe, p.template, k.context, k.direction,
           CASE WHEN min(r.value) < max(r.value) AND min(y.value) < max(y.value)
                THEN corr(r.value, y.value) END AS pearson,
           count(*) AS points
    FROM compared k
    JOIN score y ON y.metric_id = k.dynamic_id
    JOIN pooled p ON p.dynamic_id = y.probe_id
    JOIN score r ON r.metric_id = k.static_id AND r.head_id = y.head_id
                AND r.probe_id = p.static_id
    JOIN head h ON h.id = y.head_id
    JOIN model m ON m.id = h.model_id
    WHERE r.value IS NOT NULL AND y.value IS NOT NULL
    GROUP BY m.name, k.relation, p.probe, p.template, k.context, k.direction
"""


def upgrade() -> None:
    op.execute(f"CREATE VIEW relation_correlations AS {RELATION_CORRELATIONS}")


def downgrade() -> None:
    op.execute("DROP VIEW relation_correlations")
