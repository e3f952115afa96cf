"""Ranks by screening against the dense product that they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import ranks
from ingest.ranks import Pairs, Unembedding, target_ranks


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kv_heads=st.sampled_from([1, 2, 3]),
    vocabulary=st.integers(40, 4_000),
    depth=st.integers(1, 30),
    helped=st.booleans(),
)
def test_ranks_equal_the_dense_computation(
    seed: int, kv_heads: int, vocabulary: int, depth: int, helped: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    d_model, d_head, group, n_sources, n_pairs = 24, 8, 2, 11, 37
    sources = normal(n_sources, d_model)
    values, outputs = normal(kv_heads, d_model, d_head), normal(kv_heads * group, d_head, d_model)
    unembedding = normal(vocabulary, d_model)
    source = torch.randint(n_sources, (n_pairs,), generator=generator)
    target = torch.randint(vocabulary, (n_pairs,), generator=generator)
    if helped:
        # Some targets are then among the first, which random ones seldom are.
        unembedding[target[:9]] += 2 * (sources @ values[0] @ outputs[0])[source[:9]]
    found = target_ranks(
        sources,
        values,
        outputs,
        Unembedding(unembedding),
        Pairs(source=source, target=target),
        depth=depth,
    )
    for head in range(kv_heads * group):
        dense = values[head // group].double() @ outputs[head].double()
        logits = (sources.double() @ dense @ unembedding.double().T)[source]
        own = logits.gather(1, target[:, None])
        assert torch.equal(found.plain[head], (logits > own).sum(1).clamp(max=depth))
        assert torch.equal(found.negated[head], (logits < own).sum(1).clamp(max=depth))


def test_most_of_the_vocabulary_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Screening that screened nothing would be exact too, and useless."""
    asked = []
    whole = ranks._count_all

    def counted(rows: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(rows))
        return whole(rows, *rest)

    monkeypatch.setattr(ranks, "_count_all", counted)
    generator = torch.Generator().manual_seed(0)
    target_ranks(
        torch.randn(50, 32, generator=generator),
        torch.randn(1, 32, 8, generator=generator),
        torch.randn(2, 8, 32, generator=generator),
        Unembedding(torch.randn(20_000, 32, generator=generator)),
        Pairs(source=torch.arange(50).repeat(4), target=torch.arange(200)),
        depth=25,
    )
    assert sum(asked) < 0.05 * 2 * 200
