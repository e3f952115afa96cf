"""Numbers drawn from a seed, in the shapes that those of real models have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._drawn_suites import Asked
from catalog.declarations import (
    COMPOSITIONS,
    SALIENT,
    Measurement,
    MetricSpec,
    ModelSpec,
    Results,
    VectorMeasurement,
)
from ingest.probes import relations

TOKENS, OUTPUTS, READS, SPECTRUM = 30, 5, 10, 64
Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Shape:
    """A Beta distribution, stretched and moved, with some of it exactly at its lower end."""

    alpha: float
    beta: float
    scale: float = 1.0
    lower: float = 0.0
    zeros: float = 0.0


RARE = Shape(0.5, 3.0, zeros=0.97)
"""Relation scores: nearly every head does nothing for nearly every relation."""
SHAPES = {
    "confidence": Shape(2.2, 2.5),
    "current_token": Shape(0.8, 11),
    "distance": Shape(1.8, 3, scale=155),
    "distance_relative": Shape(3.5, 2.5),
    "distance_sink_free": Shape(1.9, 3.6, scale=104),
    "duplicate_token": Shape(0.5, 22),
    "duplicate_token_strict": Shape(0.3, 14),
    "entropy": Shape(2.5, 2.9, scale=4.5),
    "entropy_normalized": Shape(2.2, 2.4),
    "first_token": Shape(0.8, 1.4),
    "induction": Shape(0.25, 7),
    "induction_mass": Shape(0.9, 4.5),
    "induction_strict": Shape(0.2, 6),
    "local_8": Shape(0.9, 2.5),
    "previous_token": Shape(0.7, 8),
    "previous_token_strict": Shape(0.35, 2.6),
    "same_token_mass": Shape(0.9, 5.2),
    "positional": Shape(2, 2),
    "token_lift": Shape(0.6, 3, scale=9.4),
    "token_mass": Shape(0.5, 1.9),
    "token_mass_last": Shape(0.5, 1.8),
    "direct_logit_attribution": Shape(20, 20, scale=16, lower=-8),
    "direct_logit_attribution_centered": Shape(20, 20, scale=12, lower=-6),
    "output_norm": Shape(1.2, 7, scale=75),
    "residual_share": Shape(8, 20, scale=1.2, lower=-0.22),
    "retrieval": Shape(0.4, 9, zeros=0.6),
    "retrieval_uncapped": Shape(0.4, 9, zeros=0.6),
    "copying_hits_1": Shape(0.3, 6, zeros=0.6),
    "copying_hits_10": Shape(0.4, 7, zeros=0.4),
    "copying_suppression_10": Shape(0.3, 8, zeros=0.6),
    "ov_effective_rank": Shape(6, 2, scale=52, lower=12),
    "qk_effective_rank": Shape(5, 2, scale=52, lower=10),
    "ov_norm": Shape(2, 4, scale=420, lower=14),
    "qk_norm": Shape(1, 8, scale=1_300, lower=55),
    "ov_copying": Shape(0.7, 0.4, scale=2, lower=-1),
    "ov_positive_eigenvalues": Shape(1.1, 0.8),
    "positional_previous_token": Shape(0.5, 8),
    "query_composition": Shape(1.5, 4, scale=0.1, lower=0.04),
    "key_composition": Shape(1.5, 7, scale=0.2, lower=0.04),
    "value_composition": Shape(1.5, 8, scale=0.2, lower=0.04),
}
"""By family of metric, near the quantiles of two real models; `RARE` for all others."""
ROLES = {
    "induction": (0.03, 0.6, ("induction", "induction_strict", "induction_mass")),
    "duplicate": (0.015, 0.3, ("duplicate_token", "duplicate_token_strict")),
    "previous": (0.02, 0.25, ("previous_token", "previous_token_strict", "local_8")),
    "current": (0.015, 0.1, ("current_token",)),
    "sink": (0.1, 0.7, ("first_token", "distance_relative", "confidence")),
    "local": (0.02, 0.1, ("local_8",)),
    "diffuse": (0.01, 0.0, ("entropy_normalized",)),
}
"""Some heads have a role: what share of them, at which depth most, and what is high for it."""
STRONG = Shape(9, 2.5)


def results(of: ModelSpec, asked: Asked, drawn: np.random.Generator) -> Results:
    """What a suite comes to on a model."""
    is_weights = asked.suite == "weights"
    return Results(
        measurements=list(_measured(of, asked, drawn)),
        vectors=_vectors(of, asked, drawn) if is_weights else (),
        compositions=_compositions(of, drawn) if is_weights else None,
        salient=_salient(of, drawn) if asked.suite == "salient" else None,
    )


def _measured(of: ModelSpec, asked: Asked, drawn: np.random.Generator) -> Iterator[Measurement]:
    shape = of.n_layers, of.n_heads
    roles = _roles(of, drawn)
    for probe, (_, found) in asked.probes.items():
        for metric in found:
            if metric.is_vector:
                continue
            values = _draw(SHAPES.get(metric.family, RARE), shape, drawn)
            for role, (_, _, families) in ROLES.items():
                if metric.family in families:
                    chosen = roles == role
                    values[chosen] = _draw(STRONG, (int(chosen.sum()),), drawn)
            yield Measurement(
                metric=metric.name,
                probe=probe,
                values=[
                    [None] * of.n_heads if _is_undefined(metric, layer, of) else row
                    for layer, row in enumerate(values.tolist())
                ],
            )


def _is_undefined(metric: MetricSpec, layer: int, of: ModelSpec) -> bool:
    """As in real models: no head before the first layer, and few models with learned positions."""
    if metric.family.endswith("_composition"):
        return layer == 0
    return metric.family == "positional_previous_token" and of.architecture != "gpt2"


def _draw(shape: Shape, size: tuple[int, ...], drawn: np.random.Generator) -> Values:
    values = shape.lower + shape.scale * drawn.beta(shape.alpha, shape.beta, size)
    if shape.zeros:
        values[drawn.random(size) < shape.zeros] = shape.lower
    return values


def _roles(of: ModelSpec, drawn: np.random.Generator) -> np.ndarray[Any, Any]:
    """The role of every head, "" where it has none: [layer, head]."""
    depth = np.linspace(0, 1, of.n_layers)[:, None]
    found = np.full((of.n_layers, of.n_heads), "", dtype="<U16")
    for role, (share, most_at, _) in ROLES.items():
        near = np.exp(-(((depth - most_at) / 0.25) ** 2))
        found[drawn.random(found.shape) < share * near / near.mean()] = role
    return found


def _vectors(of: ModelSpec, asked: Asked, drawn: np.random.Generator) -> list[VectorMeasurement]:
    """Singular values and signatures; of small models, since nobody looks at them here."""
    if of.n_layers * of.n_heads > 200:  # noqa: PLR2004 - pythia-160m is one
        return []
    return [
        VectorMeasurement(
            metric=one.name,
            probe="weights",
            values=drawn.random((of.n_layers, of.n_heads, SPECTRUM)).tolist(),
        )
        for one in asked.metrics
        if one.is_vector
    ]


def _compositions(of: ModelSpec, drawn: np.random.Generator) -> pa.Table:
    """What every head after the first layer reads most, of earlier ones."""
    heads = np.arange(of.n_heads, of.n_layers * of.n_heads)
    tables = []
    for kind in ("query", "key", "value"):
        readers = heads.repeat(READS)
        # Stretched by a number without common factors: ten different ones of those before.
        first = drawn.integers(0, 1 << 30, len(heads)).repeat(READS)
        before = readers // of.n_heads * of.n_heads
        writers = (first + np.tile(np.arange(READS), len(heads))) % before
        is_first = np.tile(np.arange(READS), len(heads)) < before
        columns = {
            "kind": np.full(len(readers), kind),
            "layer": readers // of.n_heads,
            "head": readers % of.n_heads,
            "from_layer": writers // of.n_heads,
            "from_head": writers % of.n_heads,
            "value": _draw(SHAPES["key_composition"], (len(readers),), drawn),
        }
        tables.append(pa.table({name: column[is_first] for name, column in columns.items()}))
    return pa.concat_tables(tables).cast(COMPOSITIONS)


def _words() -> list[str]:
    shipped = relations.shipped("", 0)
    return sorted({f" {word}" for one in shipped.relations for pair in one.pairs for word in pair})


def _salient(of: ModelSpec, drawn: np.random.Generator) -> pa.Table:
    words = np.array(_words(), dtype=object)
    heads, outputs = of.n_layers * of.n_heads, 2 * OUTPUTS
    count = heads * TOKENS * outputs
    head = np.arange(heads).repeat(TOKENS * outputs)
    rank = np.tile(np.arange(TOKENS).repeat(outputs), heads)
    token = drawn.integers(0, len(words), heads * TOKENS).repeat(outputs)
    output = drawn.integers(0, len(words), count)
    place = np.tile(np.arange(outputs), heads * TOKENS)
    is_promoted = place < OUTPUTS
    texts = pa.array(words, pa.string())
    return pa.table(
        {
            "layer": head // of.n_heads,
            "head": head % of.n_heads,
            "token_rank": rank,
            "token_id": token,
            "token": texts.take(pa.array(token)),
            "norm": (40 - rank).astype(float),
            "direction": np.where(is_promoted, "promoted", "suppressed"),
            "output_rank": place % OUTPUTS,
            "output_id": output,
            "output": texts.take(pa.array(output)),
            "logit": np.where(is_promoted, 1.0, -1.0) * drawn.gamma(4, 2, count),
        }
    ).cast(SALIENT)
