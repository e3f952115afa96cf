"""Create the stable views that users query

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

VIEWS = {
    "models": """
        SELECT name AS model, revision, architecture, n_layers, n_heads, n_kv_heads, d_model,
               d_head, vocab_size, n_params, base_model, dtype, quantization, source, added_at,
               content_hash
        FROM model
        WHERE is_current
    """,
    "heads": """
        SELECT m.name AS model, h.layer, h.head, h.kv_head,
               CAST(h.layer AS DOUBLE PRECISION) / NULLIF(m.n_layers - 1, 0) AS depth,
               'L' || h.layer || 'H' || h.head AS name
        FROM head h
        JOIN model m ON m.id = h.model_id
        WHERE m.is_current
    """,
    "metrics": """
        SELECT name AS metric, version, suite, unit, lower, upper, description, source,
               family, parameter
        FROM metric k
        WHERE EXISTS (SELECT 1 FROM score s WHERE s.metric_id = k.id)
    """,
    "probes": """
        SELECT name AS probe, version, kind, content_hash, seed, description
        FROM probe
    """,
    "relations": """
        SELECT DISTINCT p.name AS probe, r.name AS relation, r.category, r.k, r.n_pairs
        FROM relation r
        JOIN probe p ON p.id = r.probe_id
        JOIN run_probe rp ON rp.probe_id = p.id
        WHERE rp.is_published
    """,
    "scores": """
        SELECT m.name AS model, h.layer, h.head, k.name AS metric, p.name AS probe,
               s.value, s.run_id
        FROM score s
        JOIN head h ON h.id = s.head_id
        JOIN model m ON m.id = h.model_id
        JOIN metric k ON k.id = s.metric_id
        JOIN probe p ON p.id = s.probe_id
    """,
    "score_runs": """
        SELECT m.name AS model, m.revision, h.layer, h.head, k.name AS metric, p.name AS probe,
               s.value, s.run_id, s.is_published
        FROM (
            SELECT metric_id, head_id, probe_id, run_id, value, true AS is_published FROM score
            UNION ALL
            SELECT metric_id, head_id, probe_id, run_id, value, false FROM score_history
        ) s
        JOIN head h ON h.id = s.head_id
        JOIN model m ON m.id = h.model_id
        JOIN metric k ON k.id = s.metric_id
        JOIN probe p ON p.id = s.probe_id
    """,
    "labels": """
        SELECT m.name AS model, h.layer, h.head, t.name AS taxonomy, l.name AS label,
               hl.source, hl.confidence, hl.run_id, hl.reason, hl.added_at
        FROM head_label hl
        JOIN head h ON h.id = hl.head_id
        JOIN model m ON m.id = h.model_id
        JOIN label l ON l.id = hl.label_id
        JOIN taxonomy t ON t.id = l.taxonomy_id
        WHERE hl.retired_at IS NULL
    """,
    "taxonomies": """
        SELECT t.name AS taxonomy, t.version, t.description, t.rules, l.name AS label
        FROM taxonomy t
        LEFT JOIN label l ON l.taxonomy_id = t.id
    """,
    "runs": """
        SELECT r.id AS run_id, m.name AS model, r.suite,
               (SELECT string_agg(p.name, ',' ORDER BY p.name)
                FROM run_probe rp JOIN probe p ON p.id = rp.probe_id
                WHERE rp.run_id = r.id) AS probe,
               r.status, r.params, r.started_at, r.finished_at, r.seconds, r.peak_memory,
               r.device, r.dtype, r.versions, r.error, m.revision, r.notes
        FROM run r
        JOIN model m ON m.id = r.model_id
    """,
}


def upgrade() -> None:
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
