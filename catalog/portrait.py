"""Everything about one head, on one connection: a part of it is one statement."""

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from catalog import queries, sql
from catalog.catalog import Catalog
from catalog.sql import Result

# BibTeX counts braces, with or without a backslash before them.
_NOT_IN_BIBTEX = re.compile(r"[{}\\~^]")
_TO_BE_ESCAPED = re.compile(r"[%#$&_]")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9.-]+")

_SCORES = """
    WITH mine AS (
        SELECT s.metric_id, s.probe_id, p.name AS probe, s.value, s.run_id
        FROM score s
        JOIN head h ON h.id = s.head_id
        JOIN model m ON m.id = h.model_id
        JOIN probe p ON p.id = s.probe_id
        WHERE m.name = :model AND h.layer = :layer AND h.head = :head
    ), wanted AS (
        -- A probe's contents may depend on the tokenizer: it is its name that models share.
        SELECT mine.metric_id, mine.probe_id, mine.value, p.id AS any_probe_id
        FROM mine
        JOIN probe p ON p.name = mine.probe
        WHERE mine.value IS NOT NULL
    ), all_heads AS (
        SELECT w.metric_id, w.probe_id, CAST(sum(n.defined) AS BIGINT) AS heads
        FROM wanted w
        JOIN measured n ON n.metric_id = w.metric_id AND n.probe_id = w.any_probe_id
        GROUP BY w.metric_id, w.probe_id
    ), in_catalog AS (
        -- Counts, not rank() over a window: nothing is sorted, so that one pass over all scores
        -- of the head's metrics does, whatever their number; what lies below is not looked at.
        SELECT w.metric_id, w.probe_id, count(*) AS reach,
               count(CASE WHEN s.value > w.value THEN 1 END) AS above
        FROM wanted w
        JOIN score s ON s.metric_id = w.metric_id AND s.probe_id = w.any_probe_id
                    AND s.value >= w.value
        GROUP BY w.metric_id, w.probe_id
    ), in_model AS (
        SELECT w.metric_id, w.probe_id, count(*) AS heads,
               count(CASE WHEN s.value > w.value THEN 1 END) AS above,
               count(CASE WHEN s.value < w.value THEN 1 END) AS below
        FROM wanted w
        JOIN score s ON s.metric_id = w.metric_id AND s.probe_id = w.any_probe_id
        JOIN head h ON h.id = s.head_id
        JOIN model m ON m.id = h.model_id
        WHERE s.value IS NOT NULL AND m.name = :model
        GROUP BY w.metric_id, w.probe_id
    )
    SELECT k.suite, k.family, k.name AS metric, mine.probe, mine.value, k.unit, k.source,
           i.above + 1 AS model_rank, i.heads AS model_heads,
           CAST(i.below AS DOUBLE PRECISION) / NULLIF(i.heads - 1, 0) AS model_place,
           c.above + 1 AS catalog_rank, a.heads AS catalog_heads,
           CAST(a.heads - c.reach AS DOUBLE PRECISION) / NULLIF(a.heads - 1, 0) AS catalog_place,
           mine.run_id
    FROM mine
    JOIN metric k ON k.id = mine.metric_id
    LEFT JOIN all_heads a ON a.metric_id = mine.metric_id AND a.probe_id = mine.probe_id
    LEFT JOIN in_catalog c ON c.metric_id = mine.metric_id AND c.probe_id = mine.probe_id
    LEFT JOIN in_model i ON i.metric_id = mine.metric_id AND i.probe_id = mine.probe_id
    ORDER BY k.suite, k.family, k.name, mine.probe
"""
_LABELS = """
    SELECT taxonomy, label, source, confidence, reason, added_at, run_id
    FROM labels
    WHERE model = :model AND layer = :layer AND head = :head
    ORDER BY taxonomy, label, source
"""
_SALIENT = """
    SELECT token_rank, token, norm, direction, output_rank, output, logit, run_id
    FROM salient_operations
    WHERE model = :model AND layer = :layer AND head = :head
    ORDER BY token_rank, direction, output_rank
"""
_COMPOSITIONS = """
    SELECT 'reads' AS link, kind, from_layer AS layer, from_head AS head,
           'L' || from_layer || 'H' || from_head AS name, value, run_id
    FROM compositions
    WHERE model = :model AND layer = :layer AND head = :head
    UNION ALL
    SELECT 'feeds', kind, layer, head, 'L' || layer || 'H' || head, value, run_id
    FROM compositions
    WHERE model = :model AND from_layer = :layer AND from_head = :head
    ORDER BY link DESC, value DESC, layer, head, kind
"""
_PATTERNS = """
    SELECT prompt, n_tokens, max_error, added_at, run_id
    FROM stored_patterns
    WHERE model = :model AND layer = :layer AND head = :head
    ORDER BY prompt
"""
_RUNS = """
    SELECT run_id, suite, probe, revision, dtype, device, started_at, seconds, params, versions,
           notes
    FROM runs
    WHERE run_id IN ({ids})
    ORDER BY run_id
"""


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """What the catalog knows of one head."""

    model: dict[str, Any]
    """Its model's row of the view `models`."""
    layer: int
    head: int
    scores: Result
    """suite, family, metric, probe, value (NULL: undefined), unit, source, and per `model` and
    `catalog` (its heads with a value of this metric on this probe): `_heads`, how many there are;
    `_rank`, 1 the largest; `_place`, the share of the others that lie below, 0 to 1; run_id. By
    suite, family, metric, probe."""
    labels: Result
    """taxonomy, label, source, confidence, reason, added_at, run_id."""
    salient: Result
    """As `queries.salient`."""
    compositions: Result
    """As `queries.compositions`."""
    patterns: Result
    """prompt, n_tokens, max_error, added_at, run_id."""
    runs: list[dict[str, Any]]
    """Behind all of these, by run_id; params, versions and notes are dictionaries, or None."""

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}"

    def neighbour(self, step: int) -> tuple[int, int] | None:
        """Layer and head of the head `step` further, through layer after layer; None beyond."""
        n_heads = self.model["n_heads"]
        place = self.layer * n_heads + self.head + step
        inside = 0 <= place < n_heads * self.model["n_layers"]
        return divmod(place, n_heads) if inside else None

    def why_undefined(self, metric: str, run_id: int) -> str | None:
        """The reason that a run's notes give for a score that is NULL; None where they do not."""
        notes = next((run["notes"] for run in self.runs if run["run_id"] == run_id), None) or {}
        undefined: dict[str, str] = notes.get("undefined", {})
        layer = f"L{self.layer}"
        places = (self.name, layer, f"{self.name} {metric}", f"{layer} {metric}", metric)
        return next((undefined[place] for place in places if place in undefined), None)


def read(catalog: Catalog, model: str, layer: int, head: int) -> Portrait:
    """Everything about one head.

    Raises:
        UsageError: If there is no such model or head; it says which there are.
    """
    with catalog.database.reading() as connection:
        ask = partial(sql.run, connection)
        of_head = {"model": model, "layer": layer, "head": head}
        facts = ask("SELECT * FROM models WHERE model = :model", {"model": model}).rows()
        if facts and 0 <= layer < facts[0]["n_layers"] and 0 <= head < facts[0]["n_heads"]:
            parts = {
                name: ask(query, of_head)
                for name, query in (
                    ("scores", _SCORES),
                    ("labels", _LABELS),
                    ("salient", _SALIENT),
                    ("compositions", _COMPOSITIONS),
                    ("patterns", _PATTERNS),
                )
            }
            ids = {key for part in parts.values() for key in _run_ids(part)}
            listed = ", ".join(str(key) for key in sorted(ids)) or "NULL"
            runs = [_readable(row) for row in ask(_RUNS.format(ids=listed))]
            return Portrait(model=facts[0], layer=layer, head=head, runs=runs, **parts)
    queries.require_head(catalog, model, layer, head)
    raise AssertionError(f"{model} has no L{layer}H{head}, and the catalog says it has")


def citation(portrait: Portrait) -> str:
    """What a paper says of where its numbers on a head come from, for BibTeX and for people."""
    model = portrait.model["model"]
    scores = portrait.scores.rows()
    sources: dict[str, list[str]] = {}
    for row in scores:
        families = sources.setdefault(row["source"], [])
        if row["family"] not in families:
            families.append(row["family"])
    runs = "; ".join(
        f"run {run['run_id']}: {run['suite']} on {run['probe']}, "
        f"{run['dtype']}, {run['started_at']:%Y-%m-%d}"
        for run in portrait.runs
    )
    revision = portrait.model["revision"] or "unknown"
    lines = [
        f"@misc{{{_NOT_IN_KEY.sub('-', f'{model}-{portrait.name}').strip('-')},",
        f"  title = {{Attention head {portrait.name} of {_tex(model)}}},",
        "  howpublished = {Head Catalog},",
        f"  note = {{Model revision {_tex(revision)}; {_tex(runs or 'no runs')}}},",
        "}",
        *(f"% {', '.join(families)}: {source}" for source, families in sources.items()),
    ]
    return "\n".join(line.replace("\n", " ") for line in lines)


def _run_ids(part: Result) -> set[int]:
    return {key for key in part.arrow()["run_id"].to_pylist() if key is not None}


def _readable(run: dict[str, Any]) -> dict[str, Any]:
    """A run whose JSON is dictionaries, which both databases give as text."""
    texts = {name: run[name] for name in ("params", "versions", "notes")}
    return run | {name: None if text is None else json.loads(text) for name, text in texts.items()}


def _tex(text: str) -> str:
    return _TO_BE_ESCAPED.sub(lambda found: f"\\{found[0]}", _NOT_IN_BIBTEX.sub("?", text))
