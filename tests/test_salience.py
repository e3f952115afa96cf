"""Salient tokens against the dense computation, and as rows for the catalog."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import array, dense, layer, normal, one_head
from torch import Tensor

from catalog.declarations import SALIENT
from ingest import salience
from ingest.heads import LayerHeads
from ingest.salience import DIRECTIONS, Salient, salient, table

VOCABULARY, D_MODEL = 60, 24
ALLOWED = torch.tensor([i for i in range(VOCABULARY) if i not in {0, 1, 7, 59}])
SOURCES = normal(VOCABULARY, D_MODEL, seed=11)
UNEMBEDDING = normal(VOCABULARY, D_MODEL, seed=12)


def assert_equals_dense(
    found: Salient, heads: LayerHeads, sources: Tensor, unembedding: Tensor
) -> None:
    """Compared by values: float32 may order what differs by rounding otherwise."""
    allowed = ALLOWED.numpy()
    for head, one in enumerate(dense(heads, "ov")):
        written = array(sources) @ one
        norms = np.linalg.norm(written, axis=1)
        tokens = found.tokens[head].numpy()
        best = np.sort(norms[allowed])[::-1][: len(tokens)]
        np.testing.assert_allclose(norms[tokens], best, rtol=1e-5)
        np.testing.assert_allclose(found.norms[head], best, rtol=1e-5)
        assert len(set(tokens)) == len(tokens)
        assert set(tokens) <= set(allowed)
        logits = written[tokens] @ array(unembedding).T
        for place in range(len(tokens)):
            for direction, sign in enumerate((-1, 1)):
                outputs = found.outputs[head, place, direction].numpy()
                best = sign * np.sort(sign * logits[place, allowed])[: len(outputs)]
                np.testing.assert_allclose(logits[place, outputs], best, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(
                    found.logits[head, place, direction], best, rtol=1e-4, atol=1e-4
                )
                assert set(outputs) <= set(allowed)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    kv_heads=st.sampled_from([1, 2, 6]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    chunk=st.integers(1, 5_000),
)
def test_salient_tokens_equal_the_dense_computation(
    seed: int, kv_heads: int, dtype: torch.dtype, chunk: int
) -> None:
    heads = layer(seed, n_kv_heads=kv_heads)
    sources, unembedding = SOURCES.to(dtype), UNEMBEDDING.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(salience, "_MAX_ELEMENTS", chunk)
        found = salient(heads, sources, unembedding, allowed=ALLOWED, n_tokens=7, n_outputs=3)
    assert found.outputs.shape == (6, 7, 2, 3)
    assert_equals_dense(found, heads, sources, unembedding)


def test_a_head_that_doubles_one_word_and_turns_it_into_another() -> None:
    basis = torch.eye(6)
    # Reads the first two directions, the second twice as strongly, and writes them elsewhere.
    head = one_head(value=basis[:, :2] * torch.tensor([1.0, 2.0]), output=basis[4:])
    sources = torch.zeros(5, 6)
    sources[1, 0], sources[2, 1], sources[3, 1] = 1, 1, 3
    found = salient(
        head, sources, basis[:5], allowed=torch.tensor([0, 1, 2, 4]), n_tokens=3, n_outputs=2
    )
    assert found.tokens.tolist() == [[2, 1, 0]]  # 3 would be first, were it allowed
    assert found.norms.tolist() == [[2, 1, 0]]
    # Token 2 becomes 2 in direction 5, which no output has; token 1 becomes 1 in direction 4.
    assert found.outputs[0, 1].tolist() == [[4, 0], [0, 1]]
    assert found.logits[0, 1].tolist() == [[1, 0], [0, 0]]
    assert found.outputs[0, 0].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("chunk", [60, 24 * 5, 1 << 20])
def test_of_equals_the_lower_ids_come_first(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salience, "_MAX_ELEMENTS", chunk)
    rows = torch.arange(VOCABULARY) // 20
    head = one_head(value=torch.eye(24), output=torch.eye(24))
    sources, unembedding = torch.eye(24)[rows] * (1 + rows[:, None]), torch.eye(24)[rows]
    found = salient(head, sources, unembedding, allowed=ALLOWED, n_tokens=21, n_outputs=4)
    assert found.tokens[0].tolist() == [*range(40, 59), 20, 21]
    assert found.outputs[0, 0].tolist() == [[40, 41, 42, 43], [2, 3, 4, 5]]
    assert found.outputs[0, 20].tolist() == [[20, 21, 22, 23], [2, 3, 4, 5]]


def test_few_tokens_are_all_there_is() -> None:
    few = torch.tensor([3, 5, 8])
    found = salient(layer(), SOURCES, UNEMBEDDING, allowed=few)
    assert found.outputs.shape == (6, 3, 2, 3)
    assert found.tokens.sort(dim=1).values.tolist() == [few.tolist()] * 6
    opposite = found.outputs[:, :, 1].flip(-1)
    assert torch.equal(found.outputs[:, :, 0], opposite)


def test_rows_for_the_catalog() -> None:
    first, last = layer(1), layer(2)
    output = last.part("output").clone()
    output[3] = 0
    last = layer(2, output=output)
    found = [
        salient(one, SOURCES, UNEMBEDDING, allowed=ALLOWED, n_tokens=4, n_outputs=2)
        for one in (first, last)
    ]
    rows = table([found[0], None, found[1]], lambda token: f"<{token}>")
    assert rows.schema == SALIENT
    assert rows.num_rows == (6 + 5) * 4 * 2 * 2  # neither the missing layer nor the dead head
    kept = rows.to_pylist()
    assert {row["layer"] for row in kept} == {0, 2}
    assert {row["head"] for row in kept if row["layer"] == 2} == {0, 1, 2, 4, 5}
    for row in kept:
        one = found[row["layer"] // 2]
        place = (row["head"], row["token_rank"])
        direction = DIRECTIONS.index(row["direction"])
        assert row["token_id"] == one.tokens[place]
        assert row["norm"] == one.norms[place]
        assert row["output_id"] == one.outputs[place][direction, row["output_rank"]]
        assert row["logit"] == one.logits[place][direction, row["output_rank"]]
        assert row["token"] == f"<{row['token_id']}>"
        assert row["output"] == f"<{row['output_id']}>"
    assert table([None], str).schema == SALIENT
