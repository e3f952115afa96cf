"""Composition scores against dense products, and what is kept of them."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import Array, dense, layer, normal, one_head

from catalog.declarations import COMPOSITIONS
from ingest.composition import KINDS, Strongest, compositions, reading, writing
from ingest.heads import LayerHeads
from ingest.metrics import COMPOSITION_METRICS

N_LAYERS, N_HEADS = 4, 6


def scores(reader: LayerHeads, writer: LayerHeads) -> Array:
    found: Array = compositions(reading(reader, 1), writing(writer, 0)).numpy()
    return found


def by_dense_products(reader: LayerHeads, writer: LayerHeads) -> Array:
    """Products of d_model x d_model matrices, as the paper writes them."""
    norm = np.linalg.norm
    query_key, value_output = dense(reader, "qk"), dense(reader, "ov")
    found = np.empty((3, reader.n_heads, writer.n_heads))
    for j, written in enumerate(dense(writer, "ov")):
        for i in range(reader.n_heads):
            for kind, read in enumerate([query_key[i], query_key[i].T, value_output[i]]):
                found[kind, i, j] = norm(written @ read) / (norm(written) * norm(read))
    return found


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    kv_heads=st.sampled_from([1, 2, 3, 6]),
    d_value=st.sampled_from([1, 4, 30]),
)
def test_scores_equal_dense_products(seed: int, kv_heads: int, d_value: int) -> None:
    reader = layer(seed, n_kv_heads=kv_heads, d_value=d_value)
    writer = layer(seed + 1, n_heads=4, n_kv_heads=2)  # layers need not be alike
    found = scores(reader, writer)
    assert found.shape == (3, 6, 4)
    np.testing.assert_allclose(found, by_dense_products(reader, writer), atol=1e-6)
    assert ((found > 0) & (found <= 1 + 1e-6)).all()


def test_scores_say_which_part_of_a_head_reads_what_another_writes() -> None:
    # One head writes two directions; another asks for both, is found by one of them and by one
    # that nobody writes, and moves one of them in a dimension of twice the size.
    basis = torch.eye(24)
    writer = one_head(value=basis[:, 10:12], output=basis[:2])
    reader = one_head(
        query=basis[:, :2],
        key=basis[:, [0, 5]],
        value=basis[:, [1, 7]] * torch.tensor([2.0, 1.0]),
        output=basis[20:22],
    )
    # |A B|: sqrt(2), 1, 2. |A| = sqrt(2); |B|: sqrt(2), sqrt(2), sqrt(5).
    expected = [math.sqrt(2) / 2, 1 / 2, 2 / math.sqrt(10)]
    np.testing.assert_allclose(scores(reader, writer)[:, 0, 0], expected, atol=1e-6)


def test_random_heads_compose_by_one_over_the_root_of_the_width() -> None:
    found = scores(layer(1, d_model=400), layer(2, d_model=400))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), 1 / math.sqrt(400), rtol=0.1)


def test_dead_heads_are_undefined_and_spoil_no_other() -> None:
    reader, writer = layer(1), layer(2)
    whole = scores(reader, writer)
    query, output = reader.part("query").clone(), writer.part("output").clone()
    query[2], output[4] = 0, 0
    found = scores(layer(1, query=query), layer(2, output=output))
    dead = np.zeros_like(found, dtype=bool)
    dead[:2, 2] = True  # its queries; it still moves values
    dead[:, :, 4] = True
    assert np.isnan(found[dead]).all()
    np.testing.assert_allclose(found[~dead], whole[~dead], atol=1e-7)


def test_missing_parts_leave_the_other_kinds() -> None:
    whole = scores(layer(1), layer(2))
    found = scores(layer(1, key=None), layer(2))
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2], whole[2])
    assert np.isnan(scores(layer(1), layer(2, value=None))).all()


def strongest(layers: list[LayerHeads], n: int, order: int = 1) -> Strongest:
    kept = Strongest(len(layers), N_HEADS, n)
    for before, after in list(combinations(range(len(layers)), 2))[::order]:
        kept.add(reading(layers[after], after), writing(layers[before], before))
    return kept


def model() -> list[LayerHeads]:
    """Four layers; a head is dead, and two heads are the same."""
    layers = [layer(seed) for seed in range(N_LAYERS)]
    output, query = layers[1].part("output").clone(), layers[3].part("query").clone()
    output[2] = 0
    query[5] = query[4]  # of the same KV head
    layers[1], layers[3] = layer(1, output=output), layer(3, query=query)
    return layers


@pytest.mark.parametrize("n", [1, 3, 100])
def test_the_strongest_of_every_head_are_kept_from_either_side(n: int) -> None:
    layers = model()
    pairs = {
        (kind, after, i, before, j): score
        for before, after in combinations(range(N_LAYERS), 2)
        for kind, matrix in zip(KINDS, scores(layers[after], layers[before]), strict=True)
        for i, row in enumerate(matrix.tolist())
        for j, score in enumerate(row)
        if not math.isnan(score)
    }
    expected = set()
    for ends in (slice(1, 3), slice(3, 5)):
        for end in {(key[0], key[ends]) for key in pairs}:
            own = [key for key in pairs if (key[0], key[ends]) == end]
            expected |= set(sorted(own, key=lambda key: (-pairs[key], key))[:n])
    table = strongest(layers, n).table()
    assert table.schema == COMPOSITIONS
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert {row[:5]: row[5] for row in rows} == {key: pairs[key] for key in expected}
    assert len(rows) == len(expected)
    assert rows == sorted(rows, key=lambda row: (KINDS.index(row[0]), *row[1:5]))


def test_the_order_of_layers_does_not_matter() -> None:
    assert strongest(model(), 2).table() == strongest(model(), 2, order=-1).table()


def test_a_heads_scores_are_its_largest_with_earlier_heads() -> None:
    layers = model()
    found = strongest(layers, 2).scores()
    assert set(found) == set(COMPOSITION_METRICS) == {f"{kind}_composition" for kind in KINDS}
    for index, kind in enumerate(KINDS):
        values = found[f"{kind}_composition"]
        assert values.shape == (N_LAYERS, N_HEADS)
        assert values[0].isnan().all()
        for after in range(1, N_LAYERS):
            earlier = [scores(layers[after], layers[b])[index] for b in range(after)]
            np.testing.assert_array_equal(
                values[after], np.fmax.reduce(np.concatenate(earlier, axis=1), axis=1)
            )


def test_nothing_is_kept_of_a_model_of_one_layer() -> None:
    kept = strongest([layer()], 3)
    assert kept.table().num_rows == 0
    assert kept.scores()["key_composition"].isnan().all()


def test_a_layer_does_not_read_itself() -> None:
    kept = Strongest(2, N_HEADS, 1)
    with pytest.raises(ValueError, match="layer 1 reads nothing that layer 1 writes"):
        kept.add(reading(layer(), 1), writing(layer(), 1))


def test_float32_products_are_as_good_as_stated_at_a_usual_width() -> None:
    sizes: dict[str, Any] = {
        "n_heads": 2,
        "n_kv_heads": 1,
        "d_model": 1024,
        "d_key": 64,
        "d_value": 64,
    }
    reader = layer(1, **sizes)
    # A common direction, as trained models have: scores are far from random ones.
    writer = layer(2, **sizes, output=normal(2, 64, 1024, seed=3) + 3)
    np.testing.assert_allclose(
        scores(reader, writer), by_dense_products(reader, writer), rtol=0, atol=1e-6
    )
