"""What pages and commands read, each in one round trip that both databases understand.

Texts are ordered by the database, hence by its collation: sort in Python where that matters.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.sql import Result
from catalog.texts import stored

MAX_ROWS = 1_000_000
"""What may be asked for at once, where a number of rows is asked for."""

USUAL_TAXONOMY = "function"
USUAL_PROBES = ("shipped", "plain", "random_repeat")
"""What is meant where nobody says on which probe, in this order."""


def models(catalog: Catalog) -> Result:
    """The models that readers see, by name.

    Returns:
        The columns of the view `models`, and `labelled_heads`: how many of the model's heads have
        a label of any taxonomy.
    """
    return catalog.sql(
        """
        SELECT m.*, COALESCE(l.labelled_heads, 0) AS labelled_heads
        FROM models m
        LEFT JOIN (
            SELECT model, COUNT(*) AS labelled_heads
            FROM (SELECT DISTINCT model, layer, head FROM labels) labelled
            GROUP BY model
        ) l ON l.model = m.model
        ORDER BY m.model
        """
    )


def require_model(catalog: Catalog, name: str) -> dict[str, Any]:
    """The row of `models` for the model of this name.

    Raises:
        UsageError: If there is none; it names those with a similar name.
    """
    rows = {row["model"]: row for row in models(catalog)}
    if name not in rows:
        raise UsageError(
            f"the catalog has no model {name!r}{_suggestion(name, list(rows))}; "
            "`heads models` lists what it has"
        )
    return rows[name]


def require_head(catalog: Catalog, model: str, layer: int, head: int) -> None:
    """See that a model has such a head.

    Raises:
        UsageError: If there is no such model or no such head; it says which there are.
    """
    facts = require_model(catalog, model)
    if not (0 <= layer < facts["n_layers"] and 0 <= head < facts["n_heads"]):
        raise UsageError(
            f"{model} has {facts['n_layers']} layers of {facts['n_heads']} heads, "
            f"counted from 0, and no L{layer}H{head}"
        )


def require_taxonomy(catalog: Catalog, name: str) -> None:
    """See that there is a taxonomy of this name.

    Raises:
        UsageError: If there is none; it names those that there are.
    """
    known = [row["taxonomy"] for row in catalog.sql("SELECT DISTINCT taxonomy FROM taxonomies")]
    if name not in known:
        has = f"it has {', '.join(sorted(known))}" if known else "nothing is labelled yet"
        raise UsageError(f"the catalog has no taxonomy {name!r}; {has}")


def taxonomies(catalog: Catalog, *models: str) -> Result:
    """The taxonomies in use anywhere in the catalog, those that label these models first.

    Args:
        catalog: Where to look.
        models: Names of models; without any, no taxonomy labels them.

    Returns:
        taxonomy; labels, the number of distinct labels given in the whole catalog; heads, the
        number of heads of these models with at least one of them, 0 where there is none.
    """
    names, parameters = _bound(models)
    return catalog.sql(
        f"""
        SELECT taxonomy, COUNT(DISTINCT label) AS labels,
               COUNT(DISTINCT CASE WHEN model IN ({names}) THEN place END) AS heads
        FROM (
            SELECT taxonomy, label, model, layer || '.' || head || '.' || model AS place
            FROM labels
        ) given
        GROUP BY taxonomy
        ORDER BY heads DESC, taxonomy
        """,  # noqa: S608 - only the names of parameters are put in
        **parameters,
    )


def usual_taxonomy(heads: Mapping[str, int]) -> str:
    """The taxonomy that is meant where nobody names one.

    Args:
        heads: How many heads each taxonomy labels, in the order of `taxonomies`.

    Returns:
        `function` where it labels any, or where there is no other; else the first.
    """
    return USUAL_TAXONOMY if heads.get(USUAL_TAXONOMY) or not heads else next(iter(heads))


def taxonomy_labels(catalog: Catalog, taxonomy: str) -> list[str]:
    """The labels of a taxonomy that any model in the catalog has, in order of code points."""
    given = catalog.sql(
        "SELECT DISTINCT label FROM labels WHERE taxonomy = :taxonomy", taxonomy=taxonomy
    )
    return sorted(row["label"] for row in given)


def head_labels(catalog: Catalog, models: Sequence[str], taxonomy: str) -> Result:
    """Every head of the models with what one taxonomy says of it.

    Args:
        catalog: Where to look.
        models: Names of models, in the order in which they are wanted; unknown ones add no rows.
        taxonomy: Name of a taxonomy; under an unknown one no head has a label.

    Returns:
        model, layer, head, name ('L5H3'), n_layers, n_heads, label, source, confidence, reason,
        scores. One row per head, label and source of the label; label to reason are NULL in the
        one row of a head without a label. scores are the head's three largest of the metrics that
        the taxonomy's rules are about, as text, NULL where there is no rule or score. In order of
        model as given, layer, head.

    Raises:
        UsageError: If no model is named.
    """
    if not models:
        raise UsageError("no model is named; `heads models` lists what the catalog has")
    names, parameters = _bound(models)
    order = " ".join(f"WHEN :model_{place} THEN {place}" for place in range(len(models)))
    return catalog.sql(
        f"""
        WITH ranked AS (
            SELECT s.model, s.layer, s.head, s.metric, s.probe, s.value,
                   row_number() OVER (
                       PARTITION BY s.model, s.layer, s.head
                       ORDER BY s.value DESC, s.metric, s.probe
                   ) AS place
            FROM scores s
            JOIN metrics k ON k.metric = s.metric
            WHERE s.model IN ({names}) AND s.value IS NOT NULL AND k.family IN (
                SELECT k.family FROM metrics k
                JOIN taxonomies t
                  ON CAST(t.rules AS VARCHAR) LIKE '%"metric": "' || k.family || '"%'
                WHERE t.taxonomy = :taxonomy
            )
        ), best AS (
            SELECT model, layer, head, string_agg(
                       metric || ' ' || CAST(CAST(value AS DECIMAL(12, 3)) AS VARCHAR)
                       || ' (' || probe || ')', ', ' ORDER BY place
                   ) AS scores
            FROM ranked
            WHERE place <= 3
            GROUP BY model, layer, head
        )
        SELECT h.model, h.layer, h.head, h.name, m.n_layers, m.n_heads,
               l.label, l.source, l.confidence, l.reason, b.scores
        FROM heads h
        LEFT JOIN best b ON b.model = h.model AND b.layer = h.layer AND b.head = h.head
        JOIN models m ON m.model = h.model
        LEFT JOIN labels l ON l.model = h.model AND l.layer = h.layer AND l.head = h.head
                          AND l.taxonomy = :taxonomy
        WHERE h.model IN ({names})
        ORDER BY CASE h.model {order} END, h.layer, h.head, l.label, l.source
        """,  # noqa: S608 - only the names of parameters are put in
        taxonomy=taxonomy,
        **parameters,
    )


def model(catalog: Catalog, name: str) -> Result:
    """One model's row of the view `models`."""
    return catalog.sql("SELECT * FROM models WHERE model = :model", model=name)


def metrics(catalog: Catalog) -> Result:
    """The metrics that have been measured, by suite and name."""
    return catalog.sql("SELECT * FROM metrics ORDER BY suite, metric")


def runs(catalog: Catalog, model: str) -> Result:
    """A model's runs, newest first: run_id, suite, probe, status, started_at, seconds, error."""
    return catalog.sql(
        "SELECT run_id, suite, probe, status, started_at, seconds, error FROM runs "
        "WHERE model = :model ORDER BY run_id DESC",
        model=model,
    )


def label_counts(catalog: Catalog, model: str) -> Result:
    """How many heads of a model have each label: taxonomy, label, heads."""
    return catalog.sql(
        "SELECT taxonomy, label, count(*) AS heads FROM "
        "(SELECT DISTINCT layer, head, taxonomy, label FROM labels WHERE model = :model) AS one "
        "GROUP BY taxonomy, label ORDER BY taxonomy, heads DESC, label",
        model=model,
    )


def head(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """Everything about one head: what (metric or taxonomy), on (probe or source), value, label."""
    return catalog.sql(
        """
        SELECT h.name, s.metric AS what, s.probe AS "on", s.value, NULL AS label
        FROM heads h
        JOIN scores s ON s.model = h.model AND s.layer = h.layer AND s.head = h.head
        WHERE h.model = :model AND h.layer = :layer AND h.head = :head
        UNION ALL
        SELECT h.name, l.taxonomy, l.source, NULL, l.label
        FROM heads h
        JOIN labels l ON l.model = h.model AND l.layer = h.layer AND l.head = h.head
        WHERE h.model = :model AND h.layer = :layer AND h.head = :head
        ORDER BY 5, 2, 3
        """,
        model=model,
        layer=layer,
        head=head,
    )


def probes_of(catalog: Catalog, metric: str) -> list[str]:
    """The probes on which a metric is published; first the one that is meant by default.

    Raises:
        UsageError: If the metric is not in the catalog, or is no score; names near ones.
    """
    rows = catalog.sql("SELECT DISTINCT probe FROM scores WHERE metric = :metric", metric=metric)
    found = [row["probe"] for row in rows]
    if not found:
        is_vector = {row["metric"]: row["is_vector"] for row in metrics(catalog)}
        if is_vector.get(metric):
            raise UsageError(
                f"{metric} is a list of numbers for every head, and no score; "
                "the view `vectors` has it"
            )
        known = [name for name, listed in is_vector.items() if not listed]
        raise UsageError(
            f"the catalog has no scores of {metric!r}{_suggestion(metric, known)}; "
            "`heads metrics` lists what it has"
        )
    usual = [probe for probe in USUAL_PROBES if probe in found]
    return usual + sorted(set(found) - set(usual))


def token_choices(catalog: Catalog) -> Result:
    """What of attention to classes of tokens is there to be seen.

    Returns:
        model, probe, class: all that `token_totals` can be asked for.
    """
    # Every head of a model has a row, so that one of them tells what was measured on all.
    return catalog.sql(
        """
        SELECT s.model, s.probe, k.parameter AS class
        FROM metrics k
        JOIN scores s ON s.metric = k.metric
        WHERE k.family = 'token_mass' AND s.layer = 0 AND s.head = 0
        ORDER BY s.model, s.probe, k.parameter
        """
    )


def token_totals(
    catalog: Catalog,
    models: Sequence[str],
    probe: str,
    *,
    layers: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
) -> Result:
    """Attention of whole layers to classes of tokens (`token_mass`).

    Args:
        catalog: Where to look.
        models: Names of models, in the order in which they are wanted.
        probe: Name of a probe.
        layers: Only these; all where None.
        classes: Only these; all where None.

    Returns:
        model, probe, layer, class, total (the sum over the layer's heads, 0 to n_heads), mean (the
        same over their number, 0 to 1), heads, n_heads, n_layers; in order of model as given,
        layer, class. Heads without a score are in neither, and not in heads, which is how many
        have one; total and mean are NULL where none has.

    Raises:
        UsageError: If no model is named, or nothing is published of one of them; it says what is.
    """
    if not models:
        raise UsageError("no model is named; `heads models` lists what the catalog has")
    names, parameters = _bound(models)
    order = " ".join(f"WHEN :model_{place} THEN {place}" for place in range(len(models)))
    only = {"s.layer": ("layer", layers), "k.parameter": ("class", classes)}
    conditions, bound = "", dict[str, Any]()
    for column, (name, wanted) in only.items():
        if wanted is not None:
            values = {f"{name}_{place}": value for place, value in enumerate(wanted)}
            conditions += f" AND {column} IN ({', '.join(f':{key}' for key in values) or 'NULL'})"
            bound |= values
    found = catalog.sql(
        f"""
        SELECT s.model, s.probe, s.layer, k.parameter AS class, SUM(s.value) AS total,
               AVG(s.value) AS mean, COUNT(s.value) AS heads, m.n_heads, m.n_layers
        FROM metrics k
        JOIN scores s ON s.metric = k.metric
        JOIN models m ON m.model = s.model
        WHERE k.family = 'token_mass' AND s.probe = :probe AND s.model IN ({names}) {conditions}
        GROUP BY s.model, s.probe, s.layer, k.parameter, m.n_heads, m.n_layers
        ORDER BY CASE s.model {order} END, s.layer, k.parameter
        """,  # noqa: S608 - only the names of parameters are put in
        probe=probe,
        **parameters,
        **bound,
    )
    missing = set(models) - {row["model"] for row in found}
    if missing:
        _explain_no_totals(catalog, [name for name in models if name in missing], probe)
    return found


def _explain_no_totals(catalog: Catalog, models: Sequence[str], probe: str) -> NoReturn:
    """Say why there are no totals of the first of these models.

    Raises:
        UsageError: Always.
    """
    name = models[0]
    require_model(catalog, name)
    choices = [row for row in token_choices(catalog) if row["model"] == name]
    probes = sorted({row["probe"] for row in choices})
    if not probes:
        raise UsageError(
            f"attention of {name} to classes of tokens is not measured yet; "
            "`heads ingest MODEL --suite patterns` does it"
        )
    if probe not in probes:
        raise UsageError(
            f"attention of {name} to classes of tokens is not measured on {probe!r}, "
            f"but on {', '.join(probes)}"
        )
    classes = sorted({row["class"] for row in choices if row["probe"] == probe})
    n_layers = require_model(catalog, name)["n_layers"]
    raise UsageError(
        f"{name} has nothing of these layers and classes on {probe}; it has layers 0 to "
        f"{n_layers - 1} and the classes {', '.join(classes)}"
    )


def top(
    catalog: Catalog, metric: str, *, probe: str, model: str | None, limit: int, lowest: bool
) -> Result:
    """Heads by a metric: model, layer, head, name, metric, probe, value; undefined ones left out.

    Args:
        catalog: The catalog.
        metric: As the view `metrics` names it.
        probe: On which probe.
        model: Only heads of this model; all where None.
        limit: How many, 1 to `MAX_ROWS`.
        lowest: The smallest first.

    Raises:
        UsageError: If the limit is out of its range.
    """
    _require_limit(limit)
    of_model = "AND s.model = :model" if model else ""
    parameters = {"metric": metric, "probe": probe, "limit": limit}
    return catalog.sql(
        f"""
        SELECT s.model, s.layer, s.head, 'L' || s.layer || 'H' || s.head AS name, s.metric,
               s.probe, s.value
        FROM scores s
        WHERE s.metric = :metric AND s.probe = :probe AND s.value IS NOT NULL {of_model}
        ORDER BY s.value {"ASC" if lowest else "DESC"}, s.model, s.layer, s.head
        LIMIT :limit
        """,  # noqa: S608 - only fixed words are put in
        **parameters,
        **({"model": model} if model else {}),
    )


def salient(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """The tokens that a head amplifies most, each with the outputs that it is mapped to.

    Returns:
        token_rank (0: amplified most), token, norm, direction (`promoted` or `suppressed`),
        output_rank (0: the largest logit, or the smallest where suppressed), output, logit; in
        that order.

    Raises:
        UsageError: If there is no such head, or the model's have not been measured.
    """
    require_head(catalog, model, layer, head)
    found = catalog.sql(
        """
        SELECT token_rank, token, norm, direction, output_rank, output, logit
        FROM salient_operations
        WHERE model = :model AND layer = :layer AND head = :head
        ORDER BY token_rank, direction, output_rank
        """,
        model=model,
        layer=layer,
        head=head,
    )
    if not found:
        _require_measured(catalog, "salient_operations", "salient", model)
    return found


def writing(
    catalog: Catalog,
    output: str,
    *,
    model: str | None = None,
    suppressed: bool = False,
    limit: int = 20,
) -> Result:
    """The heads that promote a token, those first that rank it best among their outputs.

    Args:
        catalog: The catalog.
        output: The token's text, with the space before it where it has one.
        model: Only heads of this model; all where None.
        suppressed: The heads that suppress it instead.
        limit: How many, 1 to `MAX_ROWS`.

    Returns:
        model, layer, head, name, output_rank, token, token_rank, norm, logit, tokens. tokens
        counts the head's salient tokens that it maps to this output; token to logit are of the one
        that ranks it best.

    Raises:
        UsageError: If there are none; it says why, and names the text with or without a space
            before it where there are some for that.
    """
    _require_limit(limit)
    direction = "suppressed" if suppressed else "promoted"
    query = f"""
        SELECT model, layer, head, 'L' || layer || 'H' || head AS name, output_rank, token,
               token_rank, norm, logit, tokens
        FROM (
            SELECT o.*, row_number() OVER (
                       PARTITION BY model, layer, head ORDER BY output_rank, token_rank
                   ) AS place,
                   count(*) OVER (PARTITION BY model, layer, head) AS tokens
            FROM salient_operations o
            WHERE output = :text AND direction = '{direction}' {_of_model(model)}
        ) AS found
        WHERE place = 1
        ORDER BY output_rank, token_rank, logit {"ASC" if suppressed else "DESC"},
                 model, layer, head
        LIMIT :limit
    """  # noqa: S608 - only fixed words are put in
    verb = "suppresses" if suppressed else "promotes"
    return _by_text(catalog, query, output, model=model, limit=limit, verb=verb)


def reading(catalog: Catalog, token: str, *, model: str | None = None, limit: int = 20) -> Result:
    """The heads that amplify a token, those first that amplify it before others.

    Args:
        catalog: The catalog.
        token: Its text, with the space before it where it has one.
        model: Only heads of this model; all where None.
        limit: How many, 1 to `MAX_ROWS`.

    Returns:
        model, layer, head, name, token_rank, norm, output, logit; output is what the head promotes
        most for the token.

    Raises:
        UsageError: If there are none; as `writing`.
    """
    _require_limit(limit)
    query = f"""
        SELECT model, layer, head, 'L' || layer || 'H' || head AS name, token_rank, norm, output,
               logit
        FROM salient_operations
        WHERE token = :text AND direction = 'promoted' AND output_rank = 0 {_of_model(model)}
        ORDER BY token_rank, norm DESC, model, layer, head
        LIMIT :limit
    """  # noqa: S608 - only fixed words are put in
    return _by_text(catalog, query, token, model=model, limit=limit, verb="amplifies")


def compositions(catalog: Catalog, model: str, layer: int, head: int) -> Result:
    """What a head reads of earlier heads' outputs, and what later heads read of its own.

    Returns:
        link (`reads` or `feeds`), kind (`query`, `key` or `value`, of the later head), layer,
        head, name (of the other head), value; what it reads first, and the largest values. Each
        head's few strongest readings are kept, so `feeds` has only what is among a later head's.

    Raises:
        UsageError: If there is no such head, or the model's have not been measured.
    """
    require_head(catalog, model, layer, head)
    found = catalog.sql(
        """
        SELECT 'reads' AS link, kind, from_layer AS layer, from_head AS head,
               'L' || from_layer || 'H' || from_head AS name, value
        FROM compositions
        WHERE model = :model AND layer = :layer AND head = :head
        UNION ALL
        SELECT 'feeds', kind, layer, head, 'L' || layer || 'H' || head, value
        FROM compositions
        WHERE model = :model AND from_layer = :layer AND from_head = :head
        ORDER BY link DESC, value DESC, layer, head, kind
        """,
        model=model,
        layer=layer,
        head=head,
    )
    if not found:
        _require_measured(catalog, "compositions", "weights", model)
    return found


def relation_correlations(catalog: Catalog, model: str) -> Result:
    """How far the relation scores of a model's weights hold in a run, relation by relation.

    Returns:
        relation, probe (the relation set), template (`all`: over templates x heads), context
        (`with`, or `without` where attention was forced onto the source), direction (`promoted`
        or `suppressed`), pearson (-1 to 1; NULL where either score is the same for all heads),
        points (how many pairs of scores).

    Raises:
        UsageError: If there is no such model, or its static or dynamic scores are not measured.
    """
    require_model(catalog, model)
    found = catalog.sql(
        """
        SELECT relation, probe, template, context, direction, pearson, points
        FROM relation_correlations
        WHERE model = :model
        ORDER BY probe, relation, CASE template WHEN 'all' THEN 0 ELSE 1 END, template, context,
                 direction
        """,
        model=model,
    )
    if not found:
        raise UsageError(
            f"{model} has nothing in the view `relation_correlations`; it needs scores of one "
            "relation set in both: `heads ingest MODEL --suite relations --suite dynamic`"
        )
    return found


def _by_text(
    catalog: Catalog, query: str, text: str, *, model: str | None, limit: int, verb: str
) -> Result:
    if model is not None:
        require_model(catalog, model)
    ask = partial(catalog.sql, query, limit=limit, **({"model": model} if model else {}))
    found = ask(text=stored(text))
    if found:
        return found
    _require_measured(catalog, "salient_operations", "salient", model)
    other, differs = (text[1:], "without") if text.startswith(" ") else (f" {text}", "with")
    hint = f"; did you mean {other!r}, {differs} a space before it?" if ask(text=other) else ""
    raise UsageError(f"no head{f' of {model}' if model else ''} {verb} {text!r}{hint}")


def _require_measured(catalog: Catalog, view: str, suite: str, model: str | None) -> None:
    """See that a view has rows of the model, or any where that is None."""
    condition, parameters = ("WHERE model = :model", {"model": model}) if model else ("", {})
    if not catalog.sql(f"SELECT 1 FROM {view} {condition} LIMIT 1", **parameters):  # noqa: S608 - fixed words
        raise UsageError(
            f"{model or 'the catalog'} has nothing in the view `{view}`; "
            f"`heads ingest MODEL --suite {suite}` fills it"
        )


def _of_model(model: str | None) -> str:
    return "" if model is None else "AND model = :model"


def _require_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_ROWS:
        raise UsageError(f"{limit} rows cannot be asked for; expected 1 to {MAX_ROWS:,}")


def _bound(models: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Placeholders for an IN, and their values."""
    parameters = {f"model_{place}": model for place, model in enumerate(models)}
    return ", ".join(f":{name}" for name in parameters) or "NULL", parameters


def _suggestion(name: str, known: Sequence[str]) -> str:
    # Hub ids begin with an owner, which people leave out: compare with and without it.
    spelled = {form.lower(): model for model in known for form in (model.split("/")[-1], model)}
    near = difflib.get_close_matches(name.lower(), spelled)
    return (
        f" (did you mean {' or '.join(dict.fromkeys(spelled[form] for form in near))}?)"
        if near
        else ""
    )
