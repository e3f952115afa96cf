"""The catalog's heads as one table: filters and columns in, one reading statement out.

What a reader gives becomes bound parameters; a statement's own words are fixed here. `shown` alone
writes values into a statement, so that it can be pasted elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalog.catalog import Catalog
from catalog.errors import UsageError
from catalog.queries import MAX_ROWS
from catalog.sql import Result
from catalog.texts import readable

COLUMNS = {
    "model": "h.model",
    "name": "h.name",
    "layer": "h.layer",
    "head": "h.head",
    "depth": "h.depth",
    "architecture": "m.architecture",
    "labels": None,
}
"""What every view of the table has, and whence; labels are put together for each head."""

_SAME_HEAD = "{0}.model = {1}.model AND {0}.layer = {1}.layer AND {0}.head = {1}.head"
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
# PostgreSQL cuts names at 63 bytes.
_LONGEST_NAME = 50
_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")


@dataclass(frozen=True)
class Measured:
    """A metric on a probe: one number of every head."""

    metric: str
    probe: str

    def __str__(self) -> str:
        return f"{self.metric} on {self.probe}"

    def title(self, unit: str) -> str:
        """As axes and legends name it."""
        return f"{self} ({unit})"


@dataclass(frozen=True)
class Label:
    """A label of a taxonomy."""

    taxonomy: str
    label: str

    def __str__(self) -> str:
        return f"{self.taxonomy}: {self.label}"


@dataclass(frozen=True)
class Range:
    """The numbers from `lower` to `upper`, both in it; None: no limit."""

    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Filter:
    """Which heads; what is left empty lets all through."""

    models: Sequence[str] = ()
    architectures: Sequence[str] = ()
    depth: Range = Range()
    """Within 0 (first layer) to 1 (last); with a limit, models of one layer have no such head."""
    scores: Mapping[Measured, Range] = field(default_factory=dict)
    """With a limit, heads whose score is undefined are left out."""
    any_of: Sequence[Label] = ()
    all_of: Sequence[Label] = ()
    none_of: Sequence[Label] = ()
    token: str = ""
    """Part of a salient token, or of what it is mapped to; upper and lower case are one."""


@dataclass(frozen=True)
class View:
    """The table as somebody sees it."""

    filter: Filter = Filter()
    scores: Sequence[Measured] = ()
    """Shown as columns, beside `COLUMNS`."""
    order: str | Measured = "model"
    """A column of `COLUMNS`, or one of the scores; then by model, layer and head."""
    descending: bool = False


@dataclass(frozen=True)
class Statement:
    """One reading statement and the values of its parameters."""

    sql: str
    parameters: dict[str, Any]

    def shown(self) -> str:
        """The statement with its values written in, to be pasted where nothing is bound."""
        return _PARAMETER.sub(lambda found: _literal(self.parameters[found[1]]), self.sql)


class _Bound:
    """Values on their way into a statement, each under a name of its own."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __call__(self, kind: str, value: object) -> str:
        name = f"{kind}_{len(self.values)}"
        self.values[name] = readable(value) if isinstance(value, str) else value
        return f":{name}"

    def listed(self, kind: str, values: Sequence[object]) -> str:
        return ", ".join(self(kind, value) for value in values)


def choices(catalog: Catalog) -> Result:
    """What the table can be filtered by and show.

    Returns:
        kind, name, detail: `model`, its name and architecture (or NULL); `label`, the label and its
        taxonomy; `score`, a metric and the probe that it is measured on.
    """
    return catalog.sql(
        """
        SELECT 'model' AS kind, model AS name, architecture AS detail FROM models
        UNION ALL
        SELECT DISTINCT 'label', label, taxonomy FROM labels
        UNION ALL
        SELECT DISTINCT 'score', metric, probe FROM coverage
        ORDER BY 1, 2, 3
        """
    )


def column(view: View, score: Measured) -> str:
    """What a view's answer calls the column of a score: letters, digits and `_` alone."""
    return _names(view.scores)[score]


def statement(view: View, *, limit: int | None = None, offset: int = 0) -> Statement:
    """The statement that answers a view.

    Args:
        view: Filters, columns and order.
        limit: How many rows, 1 to `MAX_ROWS`; all where None.
        offset: How many rows come before.

    Raises:
        UsageError: If the order is no column of the view, or limit or offset out of range.
    """
    if (limit is not None and not 1 <= limit <= MAX_ROWS) or offset < 0:
        raise UsageError(f"{limit} rows from {offset} cannot be asked for")
    bound = _Bound()
    names = _names(view.scores)
    joined: dict[str, Measured | None] = {"labels": None}
    joined |= {name: score for score, name in names.items()}
    plain = {name: source for name, source in COLUMNS.items() if name not in joined}
    order = names.get(view.order) if isinstance(view.order, Measured) else view.order
    if order not in {**plain, **joined}:
        columns = ", ".join((*plain, *joined))
        raise UsageError(f"the table has no column {view.order}; it has {columns}")
    # What orders the heads is joined to all of them, the rest to those of the page alone.
    early = {name: score for name, score in joined.items() if name == order}
    late = {name: score for name, score in joined.items() if name != order}
    selected = [f"{source} AS {name}" for name, source in plain.items()]
    shown = [f"f.{name}" for name in (*plain, *early)] + [
        f"{name}.value AS {name}" for name in late
    ]
    direction = "DESC" if view.descending else "ASC"
    by = f"ORDER BY {order} {direction} NULLS LAST, model, layer, head"
    page = [by, f"LIMIT {limit:d} OFFSET {offset:d}"] if limit is not None else []
    within = [
        "SELECT " + ", ".join([*selected, *(f"{name}.value AS {name}" for name in early)]),
        "FROM heads h",
        "JOIN models m ON m.model = h.model",
        *(_join(name, score, "h", bound) for name, score in early.items()),
        *_where(view.filter, bound),
        *page,
    ]
    lines = [
        "WITH found AS (",
        *(f"    {line}" for part in within for line in part.split("\n")),
        ")",
        "SELECT " + ", ".join(shown),
        "FROM found f",
        *(_join(name, score, "f", bound, only="found") for name, score in late.items()),
        f"ORDER BY {order} {direction} NULLS LAST, f.model, f.layer, f.head",
    ]
    return Statement("\n".join(lines), bound.values)


def heads(catalog: Catalog, view: View, *, limit: int, offset: int = 0) -> Result:
    """A page of the heads of a view.

    Returns:
        The columns of `COLUMNS`, and one per score as `column` names it. labels: all of the head,
        with commas. How many heads there are in all is the sum of a facet (`facets`).

    Raises:
        UsageError: As `statement`.
    """
    return _ask(catalog, statement(view, limit=limit, offset=offset))


def all_heads(catalog: Catalog, view: View) -> Result:
    """All heads of a view, at most `MAX_ROWS`; as `heads`."""
    return _ask(catalog, statement(view, limit=MAX_ROWS))


def facets(catalog: Catalog, chosen: Filter) -> Result:
    """How many of the filtered heads are of which model and architecture, and have which label.

    Returns:
        facet (`model`, `architecture` or `label`), taxonomy (of labels; else NULL), value (NULL:
        no architecture is known), heads; the most first.
    """
    bound = _Bound()
    where = "\n".join(_where(chosen, bound))
    query = f"""
        WITH found AS (
            SELECT h.model, h.layer, h.head, m.architecture
            FROM heads h
            JOIN models m ON m.model = h.model
            {where}
        )
        SELECT 'model' AS facet, CAST(NULL AS VARCHAR) AS taxonomy, model AS value,
               count(*) AS heads
        FROM found GROUP BY model
        UNION ALL
        SELECT 'architecture', NULL, architecture, count(*) FROM found GROUP BY architecture
        UNION ALL
        SELECT 'label', g.taxonomy, g.label, count(*)
        FROM found h
        JOIN (SELECT DISTINCT model, layer, head, taxonomy, label FROM labels) g
          ON {_SAME_HEAD.format("g", "h")}
        GROUP BY g.taxonomy, g.label
        ORDER BY facet, heads DESC, taxonomy, value
        """  # noqa: S608 - only fixed words and names of parameters are put in
    return _ask(catalog, Statement(query, bound.values))


def _ask(catalog: Catalog, asked: Statement) -> Result:
    return catalog.sql(asked.sql, **asked.parameters)


def _join(name: str, score: Measured | None, to: str, bound: _Bound, *, only: str = "") -> str:
    """Join the values of a score, or the labels of each head, to heads.

    Args:
        name: Of what is joined; it has the columns of a head, and value.
        score: None: labels.
        to: What stands for the heads.
        bound: Of the statement.
        only: The heads that are wanted; all where empty.
    """
    among = f"\n    JOIN {only} o ON {_SAME_HEAD.format('o', 'v')}" if only else ""
    if score is None:
        given = f"SELECT DISTINCT v.model, v.layer, v.head, v.label FROM labels v{among}"  # noqa: S608 - our own names
        lines = [
            "SELECT model, layer, head, string_agg(label, ', ' ORDER BY label) AS value",
            f"FROM ({given}) given",
            "GROUP BY model, layer, head",
        ]
    else:
        metric, probe = bound("metric", score.metric), bound("probe", score.probe)
        lines = [
            f"SELECT v.model, v.layer, v.head, v.value FROM scores v{among}",  # noqa: S608 - as above
            f"WHERE v.metric = {metric} AND v.probe = {probe}",
        ]
    table = "\n    ".join(lines)
    return f"LEFT JOIN (\n    {table}\n) {name} ON {_SAME_HEAD.format(name, to)}"


def _where(chosen: Filter, bound: _Bound) -> list[str]:
    conditions = []
    if chosen.models:
        conditions.append(f"h.model IN ({bound.listed('model', chosen.models)})")
    if chosen.architectures:
        listed = bound.listed("architecture", chosen.architectures)
        conditions.append(f"m.architecture IN ({listed})")
    conditions += _limits("h.depth", chosen.depth, bound)
    for score, limits in chosen.scores.items():
        within = _limits("r.value", limits, bound)
        if within:
            metric, probe = bound("metric", score.metric), bound("probe", score.probe)
            conditions.append(
                _among("scores r", "r", f"r.metric = {metric}", f"r.probe = {probe}", *within)
            )
    if chosen.any_of:
        either = " OR ".join(_is(label, bound) for label in chosen.any_of)
        conditions.append(_among("labels l", "l", f"({either})"))
    conditions += [_among("labels l", "l", _is(label, bound)) for label in chosen.all_of]
    if chosen.none_of:
        either = " OR ".join(_is(label, bound) for label in chosen.none_of)
        # PostgreSQL would look through all labels for each head if this were a NOT IN.
        same = _SAME_HEAD.format("l", "h")
        conditions.append(
            f"NOT EXISTS (SELECT 1 FROM labels l WHERE {same} AND ({either}))"  # noqa: S608 - as below
        )
    if chosen.token:
        part = bound("token", chosen.token)
        has = [f"strpos(lower(o.{text}), lower({part})) > 0" for text in ("token", "output")]
        conditions.append(_among("salient_operations o", "o", f"({' OR '.join(has)})"))
    return [f"{'AND' if place else 'WHERE'} {one}" for place, one in enumerate(conditions)]


def _among(view: str, alias: str, *conditions: str) -> str:
    """That a head is one of those; DuckDB answers this in half the time of EXISTS."""
    tests = " AND ".join(conditions)
    heads = f"SELECT {alias}.model, {alias}.layer, {alias}.head FROM {view} WHERE {tests}"  # noqa: S608 - fixed words
    return f"(h.model, h.layer, h.head) IN ({heads})"


def _is(label: Label, bound: _Bound) -> str:
    taxonomy, name = bound("taxonomy", label.taxonomy), bound("label", label.label)
    return f"(l.taxonomy = {taxonomy} AND l.label = {name})"


def _limits(value: str, limits: Range, bound: _Bound) -> list[str]:
    tests = ((">=", limits.lower), ("<=", limits.upper))
    return [
        f"{value} {sign} {bound('number', limit)}" for sign, limit in tests if limit is not None
    ]


def _names(scores: Sequence[Measured]) -> dict[Measured, str]:
    names: dict[Measured, str] = {}
    for place, score in enumerate(dict.fromkeys(scores)):
        words = _NOT_IN_A_NAME.sub("_", f"{score.metric} {score.probe}".lower()).strip("_")
        # With a word before it, so that no name begins with a digit or is a word of SQL.
        name = f"score_{words}"[:_LONGEST_NAME]
        names[score] = f"{name}_{place}" if name in names.values() else name
    return names


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
