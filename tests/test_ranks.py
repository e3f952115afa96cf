"""Ranks by screening against the dense product that they stand for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ingest import ranks
from ingest.ranks import Pairs, Ranks, Unembedding, output_ranks, target_ranks

DTYPES = [torch.float32, torch.bfloat16]
SCREENINGS = pytest.mark.parametrize("screening", DTYPES, ids=str)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What `target_ranks` is given."""

    sources: Tensor
    values: Tensor
    outputs: Tensor
    unembedding: Tensor
    pairs: Pairs

    def ranks(self, depth: int, screening: torch.dtype = torch.float32) -> Ranks:
        unembedding = Unembedding(self.unembedding, screening=screening)
        return target_ranks(
            self.sources, self.values, self.outputs, unembedding, self.pairs, depth=depth
        )

    def dense_ranks(self, depth: int) -> Ranks:
        """W_V W_O and all logits in float64, head by head."""
        group = len(self.outputs) // len(self.values)
        plain, negated = [], []
        for head, output in enumerate(self.outputs.double()):
            whole = self.values[head // group].double() @ output
            logits = (self.sources.double() @ whole @ self.unembedding.double().T)[
                self.pairs.source
            ]
            own = logits.gather(1, self.pairs.target[:, None])
            plain.append((logits > own).sum(dim=1).clamp(max=depth))
            negated.append((logits < own).sum(dim=1).clamp(max=depth))
        return Ranks(plain=torch.stack(plain), negated=torch.stack(negated))


def layer(
    *,
    seed: int = 0,
    n_sources: int = 11,
    n_pairs: int = 37,
    kv_heads: int = 2,
    group: int = 2,
    d_model: int = 24,
    d_head: int = 8,
    vocabulary: int = 1_500,
    draw: Callable[..., Tensor] = torch.randn,
) -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return draw(*shape, generator=generator)

    def integers(end: int) -> Tensor:
        return torch.randint(end, (n_pairs,), generator=generator)

    return Layer(
        sources=normal(n_sources, d_model),
        values=normal(kv_heads, d_model, d_head),
        outputs=normal(kv_heads * group, d_head, d_model),
        unembedding=normal(vocabulary, d_model),
        pairs=Pairs(source=integers(n_sources), target=integers(vocabulary)),
    )


def with_hits(one: Layer) -> Layer:
    """Some targets are then among the first, which random ones seldom are."""
    helped = one.unembedding.clone()
    pairs = one.pairs
    written = one.sources @ one.values[0] @ one.outputs[0]
    helped[pairs.target[:9]] += written[pairs.source[:9]] / 4
    return replace(one, unembedding=helped)


def small_integers(*shape: int, generator: torch.Generator) -> Tensor:
    """Products of these are exact, so what ties in one order of summing ties in all."""
    return torch.randint(-1, 2, shape, generator=generator).float()


def assert_same(found: Ranks, expected: Ranks) -> None:
    assert torch.equal(found.plain, expected.plain)
    assert torch.equal(found.negated, expected.negated)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_pairs=st.integers(1, 60),
    n_sources=st.integers(1, 40),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2]),
    d_head=st.sampled_from([1, 8, 40]),
    vocabulary=st.sampled_from([1, 3, 255, 256, 257, 3_000]),
    depth=st.sampled_from([1, 10, 25, 5_000]),
    screening=st.sampled_from(DTYPES),
    stored=st.sampled_from(DTYPES),
    helped=st.booleans(),
)
def test_ranks_equal_the_dense_computation(
    seed: int,
    n_pairs: int,
    n_sources: int,
    kv_heads: int,
    group: int,
    d_head: int,
    vocabulary: int,
    depth: int,
    screening: torch.dtype,
    stored: torch.dtype,
    helped: bool,
) -> None:
    one = layer(
        seed=seed,
        n_pairs=n_pairs,
        n_sources=n_sources,
        kv_heads=kv_heads,
        group=group,
        d_head=d_head,
        vocabulary=vocabulary,
    )
    if helped:
        one = with_hits(one)
    one = replace(
        one,
        values=one.values.to(stored),
        outputs=one.outputs.to(stored),
        unembedding=one.unembedding.to(stored),
    )
    assert_same(one.ranks(depth, screening), one.dense_ranks(depth))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([1, 2, 4]),
    depth=st.sampled_from([1, 10, 5_000]),
    screening=st.sampled_from(DTYPES),
    stored=st.sampled_from(DTYPES),
    draw=st.sampled_from([torch.randn, small_integers]),
)
def test_ranks_of_outputs_equal_the_dense_computation(
    seed: int,
    rows: int,
    depth: int,
    screening: torch.dtype,
    stored: torch.dtype,
    draw: Callable[..., Tensor],
) -> None:
    """What four heads hold, each for itself or shared by groups of them; ties among integers."""
    one = layer(seed=seed, kv_heads=4, group=1, draw=draw)
    generator = torch.Generator().manual_seed(seed)
    read = draw(rows, 11, 8, generator=generator).to(stored)
    unembedding = Unembedding(one.unembedding, screening=screening)
    found = output_ranks(read, one.outputs, unembedding, one.pairs, depth=depth)
    each = read.double().repeat_interleave(4 // rows, dim=0)
    logits = each @ one.outputs.double() @ one.unembedding.double().T
    logits = logits[:, one.pairs.source]
    own = logits.gather(2, one.pairs.target.expand(4, -1)[..., None])
    plain, negated = ((logits > own).sum(dim=2), (logits < own).sum(dim=2))
    assert_same(found, Ranks(plain=plain.clamp(max=depth), negated=negated.clamp(max=depth)))


def test_an_output_with_nan_ranks_nothing_and_one_of_zeros_ties() -> None:
    one = layer(kv_heads=4, group=1)
    read = torch.randn(4, 11, 8, generator=torch.Generator().manual_seed(1))
    whole = output_ranks(read, one.outputs, Unembedding(one.unembedding), one.pairs, depth=25)
    sources = one.pairs.source
    read[1, 3, 2], read[2, 5, 0], read[0, 7] = torch.nan, torch.inf, 0
    found = output_ranks(read, one.outputs, Unembedding(one.unembedding), one.pairs, depth=25)
    for seen, before in ((found.plain, whole.plain), (found.negated, whole.negated)):
        expected = before.clone()
        expected[1, sources == 3] = expected[2, sources == 5] = 25
        expected[0, sources == 7] = 0
        assert torch.equal(seen, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(2, 700),
    depth=st.integers(1, 30),
    screening=st.sampled_from(DTYPES),
)
def test_ties_do_not_count(seed: int, vocabulary: int, depth: int, screening: torch.dtype) -> None:
    """Of so few integers most logits tie, by duplicate directions and by chance."""
    one = layer(seed=seed, d_model=6, d_head=3, vocabulary=vocabulary, draw=small_integers)
    assert_same(one.ranks(depth, screening), one.dense_ranks(depth))


@SCREENINGS
def test_equal_logits_all_rank_first(screening: torch.dtype) -> None:
    one = layer()
    found = replace(one, unembedding=one.unembedding[:1].repeat(1_500, 1)).ranks(25, screening)
    assert not found.plain.any()
    assert not found.negated.any()


@SCREENINGS
def test_norms_may_differ_by_a_million(screening: torch.dtype) -> None:
    one = with_hits(layer())
    lengths = 10.0 ** torch.arange(-3, 4).repeat(300)[: len(one.unembedding), None]
    one = replace(one, unembedding=one.unembedding * lengths)
    assert_same(one.ranks(25, screening), one.dense_ranks(25))


@SCREENINGS
def test_nearly_equal_directions_are_told_apart(screening: torch.dtype) -> None:
    """They differ in the last bits of float32, far less than products of it can tell."""
    one = layer()
    alike = one.unembedding[:1] * (1 + 2.0**-22 * one.unembedding.round())
    one = replace(one, unembedding=alike)
    assert_same(one.ranks(1_000, screening), one.dense_ranks(1_000))


@pytest.mark.parametrize("rounded", ["written", "directions"])
def test_either_factor_may_lose_digits(rounded: str) -> None:
    """In bfloat16, where all digits of the other one fit."""
    exact, real = layer(d_model=48, draw=small_integers), layer(d_model=48)
    same = torch.eye(48)[None]
    one = replace(real, values=same, outputs=same)
    if rounded == "written":
        one = replace(one, unembedding=exact.unembedding)
    else:
        one = replace(one, sources=exact.sources)
    assert_same(one.ranks(1_000, torch.bfloat16), one.dense_ranks(1_000))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_does_not_matter(scale: float) -> None:
    """Products of such matrices are beyond float32."""
    one = with_hits(layer())
    scaled = replace(one, values=one.values * scale, outputs=one.outputs * scale)
    assert_same(scaled.ranks(25), one.ranks(25))


def test_a_common_direction_does_not_matter() -> None:
    """What is added to all directions moves no rank, but much of the precision of float32."""
    one = with_hits(layer())
    shifted = replace(one, unembedding=(one.unembedding * 256).round() / 256 + 2.0**10)
    assert_same(shifted.ranks(25), shifted.dense_ranks(25))
    assert_same(
        shifted.ranks(25), replace(shifted, unembedding=shifted.unembedding - 2.0**10).ranks(25)
    )


@SCREENINGS
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_head_hits_nothing_and_spoils_none(broken: float, screening: torch.dtype) -> None:
    one = with_hits(layer())
    outputs = one.outputs.clone()
    outputs[1, 2, 3] = broken
    found, whole = replace(one, outputs=outputs).ranks(25, screening), one.ranks(25)
    for plain, sound in ((found.plain, whole.plain), (found.negated, whole.negated)):
        assert (plain[1] == 25).all()
        assert torch.equal(plain[[0, 2, 3]], sound[[0, 2, 3]])


def test_a_silent_head_ties_everywhere() -> None:
    one = layer()
    outputs = one.outputs.clone()
    outputs[1] = 0
    assert_same(
        replace(one, outputs=outputs).ranks(25), replace(one, outputs=outputs).dense_ranks(25)
    )


def test_no_pairs_have_no_ranks() -> None:
    found = layer(n_pairs=0).ranks(25)
    assert found.plain.shape == found.negated.shape == (4, 0)


@SCREENINGS
def test_small_rooms_change_nothing(
    monkeypatch: pytest.MonkeyPatch, screening: torch.dtype
) -> None:
    one = with_hits(layer())
    expected = one.ranks(25)
    monkeypatch.setattr(ranks, "_MAX_ELEMENTS", 5_000)
    monkeypatch.setattr(ranks, "_FIRST", 3)
    monkeypatch.setattr(ranks, "_LARGEST", 100)
    assert_same(one.ranks(25, screening), expected)
    tied = layer(d_model=6, d_head=3, draw=small_integers)
    assert_same(tied.ranks(25, screening), tied.dense_ranks(25))


def test_most_of_the_products_are_left_out() -> None:
    """Screening that screened nothing would be exact too, and useless."""
    one = layer(n_sources=200, n_pairs=200, d_model=64, d_head=16, vocabulary=20_000)
    with FlopCounterMode(display=False) as screened:
        one.ranks(25)
    with FlopCounterMode(display=False) as dense:
        one.dense_ranks(25)
    assert screened.get_total_flops() < dense.get_total_flops() / 10


def test_other_dtypes_are_refused() -> None:
    """float16 overflows, and its bounds are not ours."""
    with pytest.raises(ValueError, match="expected float32 or bfloat16"):
        Unembedding(torch.zeros(3, 2), screening=torch.float16)


def test_precision_is_given_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        layer().ranks(25)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SCREENINGS
def test_cuda_gives_the_same(screening: torch.dtype) -> None:
    one = with_hits(layer(n_pairs=500, d_model=256, d_head=32, vocabulary=20_000))
    there = Layer(
        sources=one.sources.cuda(),
        values=one.values.cuda(),
        outputs=one.outputs.cuda(),
        unembedding=one.unembedding.cuda(),
        pairs=Pairs(source=one.pairs.source.cuda(), target=one.pairs.target.cuda()),
    )
    found = there.ranks(25, screening)
    assert_same(Ranks(plain=found.plain.cpu(), negated=found.negated.cpu()), one.dense_ranks(25))
