"""What a run has measured, checked and turned into rows of the catalog's tables.

All of it as Arrow columns: the salient operations of a large model are more than a million rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog.declarations import COMPOSITIONS, SALIENT, Measurement, VectorMeasurement

KINDS = ("query", "key", "value")
DIRECTIONS = ("promoted", "suppressed")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What names and places stand for in the tables."""

    run_id: int
    n_layers: int
    n_heads: int
    """In a layer."""
    heads: pa.Array
    """Ids in order of layer, then head."""
    scores: Mapping[str, int]
    """Ids of the run's metrics that are numbers."""
    vectors: Mapping[str, int]
    """Ids of the run's metrics that are lists."""
    probes: Mapping[str, int]

    def name(self, place: int) -> str:
        """What people call the head at a place of `heads`."""
        return f"L{place // self.n_heads}H{place % self.n_heads}"


def score_rows(measurements: Sequence[Measurement], keys: Keys) -> pa.Table:
    """Rows of `score`.

    Raises:
        ValueError: If a metric or probe is not the run's, a shape not the model's, or a value NaN
            or infinite.
    """
    _require_declared(measurements, keys.scores, keys)
    return _by_metric("value", [(one, _scores(one, keys)) for one in measurements], keys)


def measured_rows(scores: pa.Table) -> pa.Table:
    """Rows of `measured`, of what `score_rows` gives."""
    if not scores.num_rows:
        return pa.table({})
    counted = scores.group_by(["run_id", "probe_id", "metric_id"]).aggregate(
        [("value", "count", pc.CountOptions(mode=mode)) for mode in ("all", "only_valid")]
    )
    columns = ["run_id", "probe_id", "metric_id", "heads", "defined"]
    return counted.rename_columns(columns).cast(pa.schema([(name, pa.int32()) for name in columns]))


def vector_rows(vectors: Sequence[VectorMeasurement], keys: Keys) -> pa.Table:
    """Rows of `head_vector`.

    Raises:
        ValueError: If a metric or probe is not the run's, a shape not the model's, a number
            missing, NaN or infinite, or a list not as long as those of the other heads.
    """
    _require_declared(vectors, keys.vectors, keys)
    return _by_metric("numbers", [(one, _lists(one, keys)) for one in vectors], keys)


def composition_rows(rows: pa.Table, keys: Keys) -> pa.Table:
    """Rows of `composition`.

    Args:
        rows: With the schema `COMPOSITIONS`.
        keys: Of the run.

    Raises:
        ValueError: If a column or value is missing, a number NaN or infinite, a kind unknown, a
            head not the model's, or a head reads from its own or a later layer.
    """
    rows = _as_declared(rows, COMPOSITIONS)
    _require(pc.is_in(rows["kind"], pa.array(KINDS)), rows, f"as kind {' or '.join(KINDS)}")
    readers = _head_ids(rows, keys, "layer", "head")
    writers = _head_ids(rows, keys, "from_layer", "from_head")
    _require(pc.less(rows["from_layer"], rows["layer"]), rows, "a from_layer before the layer")
    ids = {"head_id": readers, "from_head_id": writers, "run_id": _constant(keys.run_id, rows)}
    return pa.table({**ids, "kind": rows["kind"], "value": rows["value"]})


def salient_rows(rows: pa.Table, keys: Keys) -> pa.Table:
    """Rows of `salient_operation`, but for the ids of texts.

    Args:
        rows: With the schema `SALIENT`.
        keys: Of the run.

    Returns:
        The table's columns, with `token` and `output` in place of their ids.

    Raises:
        ValueError: If a column or value is missing, a number NaN or infinite, a direction unknown,
            or a head not the model's.
    """
    rows = _as_declared(rows, SALIENT)
    known = pc.is_in(rows["direction"], pa.array(DIRECTIONS))
    _require(known, rows, f"as direction {' or '.join(DIRECTIONS)}")
    ids = {
        "head_id": _head_ids(rows, keys, "layer", "head"),
        "run_id": _constant(keys.run_id, rows),
    }
    facts = {name: rows[name] for name in SALIENT.names if name not in {"layer", "head"}}
    return pa.table({**ids, **facts})


def _require_declared(
    measured: Sequence[Measurement | VectorMeasurement], metrics: Mapping[str, int], keys: Keys
) -> None:
    for one in measured:
        if one.metric not in metrics or one.probe not in keys.probes:
            raise ValueError(
                f"{one.metric} on {one.probe} is not what the run was begun for: "
                f"{', '.join(metrics)} on {', '.join(keys.probes)}"
            )


def _by_metric(
    column: str, measured: Sequence[tuple[Measurement | VectorMeasurement, pa.Array]], keys: Keys
) -> pa.Table:
    ids = {**keys.scores, **keys.vectors}
    # In order of metric, then head: DuckDB's zone maps then find one metric without an index.
    tables = [
        pa.table(
            {
                "metric_id": _constant(ids[one.metric], keys.heads),
                "head_id": keys.heads,
                "probe_id": _constant(keys.probes[one.probe], keys.heads),
                "run_id": _constant(keys.run_id, keys.heads),
                column: values,
            }
        )
        for one, values in sorted(measured, key=lambda pair: ids[pair[0].metric])
    ]
    return pa.concat_tables(tables) if tables else pa.table({})


def _scores(one: Measurement, keys: Keys) -> pa.Array:
    values = pa.array(_in_order(one, keys), pa.float64())
    place = pc.index(pc.is_finite(values), value=False).as_py()
    if place >= 0:
        raise ValueError(
            f"{one.metric} on {one.probe} is {values[place]} for {keys.name(place)}; "
            "an undefined score must be None"
        )
    return values


def _lists(one: VectorMeasurement, keys: Keys) -> pa.Array:
    lists = pa.array(_in_order(one, keys), pa.list_(pa.float32()))
    lengths = pc.list_value_length(lists)
    length = pc.max(lengths)
    place = pc.index(pc.equal(lengths, length), value=False).as_py()
    if place >= 0:
        raise ValueError(
            f"{one.metric} on {one.probe} has {lengths[place]} numbers for {keys.name(place)}, "
            f"and {length} for another head; all must have as many, or be None"
        )
    numbers = pc.list_flatten(lists)
    place = pc.index(pc.fill_null(pc.is_finite(numbers), fill_value=False), value=False).as_py()
    if place >= 0:
        head = pc.list_parent_indices(lists)[place].as_py()
        raise ValueError(
            f"{one.metric} on {one.probe} has the number {numbers[place]} for {keys.name(head)}; "
            "an undefined list must be None as a whole"
        )
    return lists


def _in_order(one: Measurement | VectorMeasurement, keys: Keys) -> list[Any]:
    """What was measured, in the order of `keys.heads`."""
    shape = (len(one.values), {len(row) for row in one.values})
    if shape != (keys.n_layers, {keys.n_heads}):
        raise ValueError(
            f"{one.metric} on {one.probe}: expected {keys.n_layers} layers of {keys.n_heads} "
            f"heads, got {shape[0]} of {sorted(shape[1])}"
        )
    return [value for row in one.values for value in row]


def _as_declared(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in the declared columns and types, all values there and finite."""
    if set(rows.column_names) != set(schema.names):
        raise ValueError(
            f"expected the columns {', '.join(schema.names)}, got {', '.join(rows.column_names)}"
        )
    rows = rows.select(schema.names).cast(schema)
    rows.validate(full=True)
    for field in schema:
        _require(pc.is_valid(rows[field.name]), rows, f"a {field.name}")
        if pa.types.is_floating(field.type):
            _require(pc.is_finite(rows[field.name]), rows, f"a finite {field.name}")
    return rows


def _head_ids(rows: pa.Table, keys: Keys, layer: str, head: str) -> pa.ChunkedArray:
    within = [
        pc.and_(pc.greater_equal(rows[name], 0), pc.less(rows[name], size))
        for name, size in ((layer, keys.n_layers), (head, keys.n_heads))
    ]
    expected = f"a {layer} below {keys.n_layers} and a {head} below {keys.n_heads}"
    _require(pc.and_(*within), rows, expected)
    return pc.take(keys.heads, pc.add(pc.multiply(rows[layer], keys.n_heads), rows[head]))


def _require(holds: pa.ChunkedArray, rows: pa.Table, expected: str) -> None:
    place = pc.index(holds, value=False).as_py()
    if place >= 0:
        raise ValueError(f"expected {expected}, got {rows.slice(place, 1).to_pylist()[0]}")


def _constant(value: int, beside: pa.Table | pa.Array) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int32()), len(beside))
