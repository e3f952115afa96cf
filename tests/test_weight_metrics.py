"""Metrics of weights against dense computations, and against values derived on paper."""

import hashlib
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import Array, array, dense, layer, normal, one_head
from torch import Tensor

from ingest.heads import LayerHeads, Part
from ingest.metrics import (
    COPYING_METRICS,
    VECTOR_METRICS,
    WEIGHT_METRICS,
    ModelMatrices,
    gram_matrix,
    sample_tokens,
)
from ingest.metrics import _token_map as token_map
from ingest.ranks import Pairs, Unembedding, target_ranks
from ingest.signatures import SIZE, Anchors, _signs, anchor_tokens, anchor_words

VOCABULARY, D_MODEL = 40, 24
EMBEDDING = normal(VOCABULARY, D_MODEL, seed=101)
UNEMBEDDING = normal(VOCABULARY, D_MODEL, seed=102)
MODEL = ModelMatrices(
    gram=gram_matrix(UNEMBEDDING, EMBEDDING),
    positions=normal(9, D_MODEL, seed=103) / 3,
    scaling=0.3,
    anchors=Anchors(
        index=torch.arange(0, 192, 5), sources=EMBEDDING[:39], outputs=UNEMBEDDING[:39]
    ),
)
PARTS: tuple[Part, ...] = get_args(Part)
IDENTITY = ModelMatrices(gram=torch.eye(D_MODEL))


def compute(name: str, heads: LayerHeads, model: ModelMatrices = MODEL) -> Array:
    metric = (WEIGHT_METRICS | VECTOR_METRICS)[name]
    values = metric.compute(heads, model)
    assert values.dtype == torch.float64
    return values.numpy()


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def token_eigenvalues(heads: LayerHeads) -> list[Array]:
    """Of the whole vocabulary's map to itself; all but d_value are zero."""
    maps = array(EMBEDDING) @ dense(heads, "ov") @ array(UNEMBEDDING).T
    found = []
    for one in maps:
        eigenvalues = np.linalg.eigvals(one)
        found.append(eigenvalues[np.argsort(-abs(eigenvalues))][: heads.part("value").shape[2]])
    return found


def positional(heads: LayerHeads, head: int) -> float:
    assert MODEL.positions is not None
    positions, kv = array(MODEL.positions), heads.kv_head(head)
    query, key = array(heads.part("query"))[head], array(heads.part("key"))[kv]
    b_query = 0 if heads.query_bias is None else array(heads.query_bias)[head]
    b_key = 0 if heads.key_bias is None else array(heads.key_bias)[kv]
    total = 0.0
    for q in range(1, len(positions)):
        asked = positions[q] @ query + b_query
        weights = [
            math.exp(MODEL.scaling * float(asked @ (positions[k] @ key + b_key)))
            for k in range(q + 1)
        ]
        total += weights[q - 1] / sum(weights)
    return total / (len(positions) - 1)


def effective_rank(matrix: Array) -> float:
    singular = np.linalg.svd(matrix, compute_uv=False)
    shares = singular[singular > 1e-12 * singular[0]] / singular.sum()
    return math.exp(-sum(share * math.log(share) for share in shares))


# The same examples every time: a real part may come near 0, where rounding decides its sign.
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    d_value=st.sampled_from([1, 4, 8]),
)
def test_weight_metrics_equal_dense_computations(
    seed: int, heads: tuple[int, int], d_value: int
) -> None:
    n_heads, n_kv_heads = heads
    one = layer(
        seed,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_value=d_value,
        query_bias=normal(n_heads, 5, seed=7),
        key_bias=normal(n_kv_heads, 5, seed=8),
    )
    eigenvalues = token_eigenvalues(one)
    ov, qk = dense(one, "ov"), dense(one, "qk")
    expected = {
        "ov_copying": [e.sum().real / abs(e).sum() for e in eigenvalues],
        "ov_positive_eigenvalues": [(e.real > 0).mean() for e in eigenvalues],
        "ov_norm": [np.linalg.norm(m) for m in ov],
        "qk_norm": [np.linalg.norm(m) for m in qk],
        "ov_effective_rank": [effective_rank(m) for m in ov],
        "qk_effective_rank": [effective_rank(m) for m in qk],
        "positional_previous_token": [positional(one, head) for head in range(n_heads)],
    }
    assert set(expected) == set(WEIGHT_METRICS)
    for name, values in expected.items():
        np.testing.assert_allclose(compute(name, one), values, rtol=1e-6, atol=1e-5, err_msg=name)
        low, high = WEIGHT_METRICS[name].range
        assert low is not None
        assert all(low - 1e-9 <= value <= (high or math.inf) for value in values)
    for circuit, matrices, n in (("ov", ov, d_value), ("qk", qk, 5)):
        np.testing.assert_allclose(
            compute(f"{circuit}_singular_values", one),
            np.linalg.svd(matrices, compute_uv=False)[:, :n],
            rtol=1e-9,
            atol=1e-12,
        )


def test_a_head_that_writes_what_it_reads_copies() -> None:
    basis = orthogonal(D_MODEL)[:, :4]
    copying = one_head(value=basis, output=basis.T)
    assert compute("ov_copying", copying, IDENTITY) == pytest.approx(1)
    assert compute("ov_positive_eigenvalues", copying, IDENTITY) == 1
    suppressing = one_head(value=basis, output=-basis.T)
    assert compute("ov_copying", suppressing, IDENTITY) == pytest.approx(-1)
    assert compute("ov_positive_eigenvalues", suppressing, IDENTITY) == 0


def test_a_rotation_copies_by_the_cosine_of_its_angle() -> None:
    # Its eigenvalues are exp(+-i angle).
    for angle in (0.4, 2.0):
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        basis = orthogonal(D_MODEL)[:, :2]
        turning = one_head(value=basis @ turn, output=basis.T)
        assert compute("ov_copying", turning, IDENTITY) == pytest.approx(math.cos(angle), abs=1e-6)
        assert compute("ov_positive_eigenvalues", turning, IDENTITY) == (angle < math.pi / 2)


def test_eigenvalues_of_rounding_alone_count_for_nothing() -> None:
    # It writes where nothing is read: W_O W_V is zero but for float32 rounding.
    basis = orthogonal(D_MODEL)
    elsewhere = one_head(value=basis[:, :4], output=basis[:, 4:8].T)
    assert np.isnan(compute("ov_copying", elsewhere, IDENTITY)).all()
    assert np.isnan(compute("ov_positive_eigenvalues", elsewhere, IDENTITY)).all()
    # Three directions copied, one suppressed twice as much, and two that lead elsewhere.
    output = torch.cat([basis[:, :3], -2 * basis[:, 3:4], basis[:, 8:10]], dim=1).T
    mixed = one_head(value=basis[:, :6], output=output)
    assert compute("ov_copying", mixed, IDENTITY) == pytest.approx(1 / 5, abs=1e-6)
    assert compute("ov_positive_eigenvalues", mixed, IDENTITY) == 3 / 4


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_equal_singular_values_have_their_number_as_effective_rank(rank: int) -> None:
    basis, scale = orthogonal(D_MODEL), torch.zeros(4)
    scale[:rank] = 3
    head = one_head(
        value=basis[:, :4] * scale, output=basis[:, 8:12].T, query=basis[:, :4], key=basis[:, :4]
    )
    assert compute("ov_effective_rank", head) == pytest.approx(rank, abs=1e-5)
    assert compute("qk_effective_rank", head) == pytest.approx(4, abs=1e-5)
    assert compute("ov_norm", head) == pytest.approx(3 * math.sqrt(rank), rel=1e-6)
    np.testing.assert_allclose(compute("ov_singular_values", head)[0], scale, atol=1e-6)


def test_positions_that_point_to_the_one_before_score_one() -> None:
    n = 6
    positions = torch.eye(n, D_MODEL)
    query, key = torch.zeros(D_MODEL, n), torch.zeros(D_MODEL, n)
    query[:n] = torch.eye(n).roll(-1, dims=1)  # position q asks for q - 1
    key[:n] = torch.eye(n)
    head = one_head(query=query, key=key)
    model = ModelMatrices(positions=positions, scaling=50.0)
    assert compute("positional_previous_token", head, model) == pytest.approx(1)
    # Without a preference, query q gives 1 / (q + 1) to each key.
    flat = ModelMatrices(positions=positions, scaling=0.0)
    harmonic = sum(1 / (q + 1) for q in range(1, n)) / (n - 1)
    assert compute("positional_previous_token", head, flat) == pytest.approx(harmonic)
    single = ModelMatrices(positions=positions[:1])
    assert np.isnan(compute("positional_previous_token", head, single)).all()


def test_a_dead_head_is_undefined_and_spoils_no_other() -> None:
    one = layer()
    parts: dict[str, Any] = {name: one.part(name).clone() for name in PARTS}
    parts["query"][1], parts["output"][1] = 0, 0
    dead = layer(**parts)
    others = [0, 2, 3, 4, 5]
    for name in WEIGHT_METRICS | VECTOR_METRICS:
        values = compute(name, dead)
        np.testing.assert_array_equal(values[others], compute(name, one)[others])
        match name:
            case "ov_norm" | "qk_norm" | "ov_singular_values" | "qk_singular_values":
                assert (values[1] == 0).all()
            case "positional_previous_token":
                assert 0 < values[1] < 1  # it attends to all positions alike
            case _:
                assert np.isnan(values[1]).all()


def test_without_what_it_needs_a_metric_is_undefined_for_all_heads() -> None:
    without: dict[str, Any] = dict.fromkeys(PARTS)
    bare = layer(**without)
    for name, metric in WEIGHT_METRICS.items():
        assert np.isnan(compute(name, bare)).tolist() == [True] * 6
        for missing in metric.needs:
            if missing in PARTS:
                one: dict[str, Any] = {missing: None}
                assert np.isnan(compute(name, layer(**one))).all()
            else:
                assert np.isnan(compute(name, layer(), ModelMatrices())).all()
    for name in VECTOR_METRICS:
        values = compute(name, bare)
        assert values.shape == (6, 1)
        assert np.isnan(values).all()


def test_inputs_stay_unchanged_and_heads_permute() -> None:
    one, order = layer(n_kv_heads=6), [3, 1, 0, 5, 4, 2]
    parts: dict[str, Any] = {name: one.part(name)[order] for name in PARTS}
    shuffled = layer(n_kv_heads=6, **parts)
    for name in WEIGHT_METRICS | VECTOR_METRICS:
        np.testing.assert_allclose(compute(name, shuffled), compute(name, one)[order], rtol=1e-9)
    again = layer(n_kv_heads=6)
    for part in PARTS:
        assert torch.equal(one.part(part), again.part(part))


def test_a_missing_part_is_named_with_its_reason() -> None:
    bare = LayerHeads(n_heads=1, n_kv_heads=1, absent={"key": "keys come from memory"})
    with pytest.raises(ValueError, match="no key matrices: keys come from memory"):
        bare.triangle("key")
    with pytest.raises(ValueError, match="no value matrices: not asked for"):
        bare.core("ov")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gram_matrix_is_summed_in_chunks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_map, "_MAX_ELEMENTS", 7 * D_MODEL)
    out, into = UNEMBEDDING.to(dtype), EMBEDDING.to(dtype)
    found = gram_matrix(out, into)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, array(out).T @ array(into), rtol=1e-5, atol=1e-5)


def test_copying_hits_count_tokens_among_their_own_extreme_logits() -> None:
    tokens = sample_tokens(range(5, VOCABULARY), n=20)
    one = layer(n_heads=2, n_kv_heads=1)
    copying = layer(
        n_heads=2, n_kv_heads=1, d_value=D_MODEL, value=torch.eye(D_MODEL)[None],
        output=torch.stack([torch.eye(D_MODEL), -torch.eye(D_MODEL)]),
    )  # fmt: skip
    for heads, unembedding in (
        (one, UNEMBEDDING),
        (copying, EMBEDDING / EMBEDDING.norm(dim=1)[:, None]),
    ):
        ranks = target_ranks(
            EMBEDDING[tokens],
            heads.part("value"),
            heads.part("output"),
            Unembedding(unembedding),
            Pairs(source=torch.arange(len(tokens)), target=tokens),
            depth=10,
        )
        for name, metric in COPYING_METRICS.items():
            k = int(name.rsplit("_", 1)[1])
            sign = -1 if metric.of_negated else 1
            seen = ranks.negated if metric.of_negated else ranks.plain
            logits = sign * array(EMBEDDING)[tokens] @ dense(heads, "ov") @ array(unembedding).T
            own = logits[:, np.arange(len(tokens)), tokens]
            expected = ((logits > own[..., None]).sum(axis=2) < k).mean(axis=1)
            np.testing.assert_allclose(metric.compute(seen, 0).mean(dim=1), expected)
    # The last two heads return every token's own embedding, and its opposite.
    scores = {
        name: metric.compute(ranks.negated if metric.of_negated else ranks.plain, 0).mean(dim=1)
        for name, metric in COPYING_METRICS.items()
    }
    assert scores["copying_hits_1"].tolist() == [1, 0]
    assert scores["copying_hits_10"][0] == 1
    assert scores["copying_suppression_10"].tolist()[1] == 1


def test_sampled_tokens_are_distinct_and_the_same_everywhere() -> None:
    ordinary = range(100, 60_000)
    tokens = sample_tokens(ordinary)
    assert tokens.tolist() == sorted(set(tokens.tolist()))
    assert len(tokens) == 2048
    assert tokens[:4].tolist() == [103, 111, 113, 120]
    assert sample_tokens(range(3, 9), n=20).tolist() == [3, 4, 5, 6, 7, 8]


# Signatures


def anchors(sources: Tensor, outputs: Tensor, index: Tensor | None = None) -> ModelMatrices:
    index = torch.arange(len(sources)) if index is None else index
    return ModelMatrices(anchors=Anchors(index=index, sources=sources, outputs=outputs))


def centred_map(heads: LayerHeads, sources: Tensor, outputs: Tensor, head: int = 0) -> Array:
    """Of one head, of length 1."""
    value, output = heads.part("value")[heads.kv_head(head)], heads.part("output")[head]
    words = array(sources) @ array(value) @ array(output) @ array(outputs).T
    words = words - words.mean(axis=0) - words.mean(axis=1, keepdims=True) + words.mean()
    flat: Array = (words / np.linalg.norm(words)).ravel()
    return flat


def test_a_signature_knows_nothing_of_the_basis() -> None:
    sources, outputs = normal(192, D_MODEL, seed=1), normal(192, D_MODEL, seed=2)
    one, basis = layer(), orthogonal(D_MODEL, seed=3)
    turned = layer(value=basis.T @ one.part("value"), output=one.part("output") @ basis)
    first = compute("ov_signature", one, anchors(sources, outputs))
    second = compute("ov_signature", turned, anchors(sources @ basis, outputs @ basis))
    assert first.shape == (6, SIZE)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1)
    np.testing.assert_allclose(first, second, atol=1e-5)
    # Nor of the head's size, or of what is added to all sources or all outputs alike.
    scaled = layer(value=3 * one.part("value"))
    moved = anchors(sources + normal(D_MODEL, seed=4), outputs + normal(D_MODEL, seed=5))
    np.testing.assert_allclose(compute("ov_signature", scaled, moved), first, atol=1e-5)


def test_dot_products_of_signatures_estimate_cosines_within_the_stated_error() -> None:
    sources, outputs = normal(192, D_MODEL, seed=1), normal(192, D_MODEL, seed=2)
    n_pairs = 120
    own, other = normal(2, n_pairs, 4, D_MODEL, seed=3)
    share = torch.arange(n_pairs)[:, None, None] / 40  # from equal to almost unrelated heads
    pairs = layer(
        n_heads=2 * n_pairs,
        n_kv_heads=n_pairs,
        output=torch.stack([own, own + share * other], dim=1).flatten(0, 1),
    )
    found = compute("ov_signature", pairs, anchors(sources, outputs))
    estimates = (found[::2] * found[1::2]).sum(axis=1)
    maps = np.stack([centred_map(pairs, sources, outputs, h) for h in range(2 * n_pairs)])
    cosines = (maps[::2] * maps[1::2]).sum(axis=1)
    assert cosines[0] == pytest.approx(1)
    assert cosines[-1] < 0.4
    assert estimates[0] == pytest.approx(1)
    errors = (estimates - cosines)[1:] / ((1 - cosines[1:] ** 2) / math.sqrt(SIZE))
    assert np.std(errors) < 1.15
    assert np.abs(errors).max() < 4.5


def test_unrelated_heads_have_signatures_at_right_angles() -> None:
    model = anchors(normal(192, D_MODEL, seed=1), normal(192, D_MODEL, seed=2))
    found = compute("ov_signature", layer(1, n_heads=12, n_kv_heads=12), model)
    others = compute("ov_signature", layer(2, n_heads=12, n_kv_heads=12), model)
    assert np.abs(found @ others.T).max() < 5 / math.sqrt(SIZE)


def test_anchors_that_one_model_lacks_count_as_nothing() -> None:
    sources, outputs = normal(192, D_MODEL, seed=1), normal(192, D_MODEL, seed=2)
    few = torch.arange(192)[torch.arange(192) % 6 != 0]
    whole = compute("ov_signature", layer(), anchors(sources, outputs))
    part = compute("ov_signature", layer(), anchors(sources[few], outputs[few], few))
    # A map without a sixth of its rows and columns keeps (5/6)^2 of its squared length.
    np.testing.assert_allclose((whole * part).sum(axis=1), 5 / 6, atol=4 / math.sqrt(SIZE))
    # By hand: the projection of the smaller map, with zeros in the places of what is absent.
    dense_map = np.zeros((192, 192))
    dense_map[np.ix_(few.numpy(), few.numpy())] = centred_map(
        layer(), sources[few], outputs[few]
    ).reshape(160, 160)
    projected = dense_map.ravel() @ array(_signs()).reshape(192 * 192, SIZE)
    np.testing.assert_allclose(part[0], projected / np.linalg.norm(projected), atol=1e-6)
    for n in (0, 1):
        rare = anchors(sources[:n], outputs[:n])
        assert np.isnan(compute("ov_signature", layer(), rare)).all()


def test_a_head_that_maps_all_words_alike_has_no_signature() -> None:
    same = normal(1, D_MODEL, seed=1).expand(192, -1)
    model = anchors(same, normal(192, D_MODEL, seed=2))
    assert np.isnan(compute("ov_signature", layer(), model)).all()


def test_the_projection_is_the_same_on_every_machine() -> None:
    signs = _signs().numpy().astype("int8")
    assert set(np.unique(signs)) == {-1, 1}
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "652fc8f7f56f0fad"


def test_anchors_are_words_that_tokenizers_may_know() -> None:
    words = anchor_words()
    assert len(words) == len(set(words)) == 192
    known: dict[str, list[int | None]] = {
        " the": [5],
        "dog": [6],
        " dog": [1, 6],
        ".": [7],
        " 3": [8],
        " of": [None],
    }

    def encode(text: str) -> list[int | None]:
        return known.get(text, [1, 2])

    found = {words[index]: token for index, token in anchor_tokens(encode).items()}
    assert found == {"the": 5, "dog": 6, ".": 7, "3": 8}
