"""Pattern metrics against values derived on paper, and against plain loops."""

import math
from collections.abc import Callable
from itertools import starmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ingest.metrics import PATTERN_GROUP_METRICS, PATTERN_METRICS, RELATION_METRICS, Sequences

PERIOD = 5


def sequences(n: int, *, bos: int = 0, period: int | None = None) -> Sequences:
    return Sequences(bos=bos, period=period, allowed=torch.arange(1, n + 1, dtype=torch.float64))


def score(name: str, patterns: Tensor, *, bos: int = 0, period: int | None = None) -> float:
    """The mean over positions, for a batch of one with one head."""
    facts = sequences(patterns.shape[-1], bos=bos, period=period)
    values = PATTERN_METRICS[name].compute(patterns[None, None].double(), facts)
    return float(values.double().nanmean())


def attending(n: int, key: Callable[[int], int]) -> Tensor:
    """A pattern in which query q gives all its attention to key(q)."""
    patterns = torch.zeros(n, n)
    for q in range(n):
        patterns[q, key(q)] = 1
    return patterns


def uniform(n: int) -> Tensor:
    return torch.ones(n, n).tril() / torch.arange(1.0, n + 1)[:, None]


def random_pattern(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n, generator=generator)
    return logits.masked_fill(torch.ones(n, n).triu(1) > 0, -math.inf).softmax(-1)


IDEAL: dict[str, Tensor] = {
    "previous_token": attending(2 * PERIOD, lambda q: max(q - 1, 0)),
    "current_token": attending(2 * PERIOD, lambda q: q),
    "first_token": attending(2 * PERIOD, lambda _: 0),
    "duplicate_token": attending(2 * PERIOD, lambda q: max(q - PERIOD, 0)),
    "induction": attending(2 * PERIOD, lambda q: max(q - PERIOD + 1, 0)),
    "previous_token_strict": attending(2 * PERIOD, lambda q: max(q - 1, 0)),
    "duplicate_token_strict": attending(2 * PERIOD, lambda q: max(q - PERIOD, 0)),
    "induction_strict": attending(2 * PERIOD, lambda q: max(q - PERIOD + 1, 0)),
    "confidence": attending(2 * PERIOD, lambda q: q // 2),
    "local_8": attending(2 * PERIOD, lambda q: max(q - 7, 0)),
}


@pytest.mark.parametrize("name", IDEAL)
def test_an_ideal_head_scores_one(name: str) -> None:
    assert score(name, IDEAL[name], period=PERIOD) == 1


@pytest.mark.parametrize(
    "name",
    [
        "previous_token",
        "previous_token_strict",
        "current_token",
        "duplicate_token",
        "duplicate_token_strict",
    ],
)
def test_an_ideal_head_of_another_kind_scores_zero(name: str) -> None:
    # The ideal head that looks furthest back: position 0, from everywhere but position 0.
    far = IDEAL["first_token"].clone()
    far[1] = 0  # query 1 has position 0 as its previous one
    assert score(name, far, period=PERIOD) == (
        1 / PERIOD if name.startswith("duplicate_token") else 0
    )


def test_uniform_attention_scores_what_paper_says() -> None:
    # Row q gives 1 / (q + 1) to each of its q + 1 keys.
    n = 2 * PERIOD
    harmonic = sum(1 / (q + 1) for q in range(1, n)) / (n - 1)
    second = sum(1 / (q + 1) for q in range(PERIOD, n)) / PERIOD
    for name in ("previous_token", "current_token", "first_token", "confidence"):
        assert score(name, uniform(n)) == pytest.approx(harmonic)
    for name in ("duplicate_token", "induction"):
        assert score(name, uniform(n), period=PERIOD) == pytest.approx(second)
    # All keys tie.
    for name in ("previous_token_strict", "duplicate_token_strict", "induction_strict"):
        assert score(name, uniform(n), period=PERIOD) == 0
    assert score("entropy", uniform(n)) == pytest.approx(sum(math.log(q + 1) for q in range(n)) / n)
    assert score("entropy_normalized", uniform(n)) == pytest.approx(1)
    assert score("distance", uniform(n)) == pytest.approx(sum(q / 2 for q in range(1, n)) / (n - 1))
    assert score("distance_relative", uniform(n)) == pytest.approx(0.5)
    # Keys 1..q remain, each with 1 / q: mean distance (q - 1) / 2.
    assert score("distance_sink_free", uniform(n)) == pytest.approx(
        sum((q - 1) / 2 for q in range(1, n)) / (n - 1)
    )
    assert score("local_8", uniform(n)) == pytest.approx((8 / 9 + 8 / 10) / 2)


def test_distance_without_the_sink_is_undefined_where_the_sink_holds_all() -> None:
    pattern = IDEAL["first_token"].clone()
    assert math.isnan(score("distance_sink_free", pattern))
    pattern[4] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0])
    assert score("distance_sink_free", pattern) == 3


def test_a_bos_token_shifts_the_blocks() -> None:
    n = 1 + 2 * PERIOD
    induction = attending(n, lambda q: max(q - PERIOD + 1, 0))
    assert score("induction", induction, bos=1, period=PERIOD) == 1
    with pytest.raises(ValueError, match="one block repeated once"):
        score("induction", induction, bos=0, period=PERIOD)
    with pytest.raises(ValueError, match="period None"):
        score("duplicate_token", induction)


def most(p: Tensor, n: int, behind: int, first: int) -> list[float]:
    """Per query 1 where the key so far behind has more than every other, else 0."""
    return [
        float(all(p[q, q - behind] > p[q, k] for k in range(n) if k != q - behind))
        for q in range(first, n)
    ]


LOOPS: dict[str, Callable[[Tensor, int, int], list[float]]] = {
    "previous_token": lambda p, n, _: [float(p[q, q - 1]) for q in range(1, n)],
    "current_token": lambda p, n, _: [float(p[q, q]) for q in range(1, n)],
    "first_token": lambda p, n, _: [float(p[q, 0]) for q in range(1, n)],
    "confidence": lambda p, n, _: [max(map(float, p[q])) for q in range(1, n)],
    "duplicate_token": lambda p, n, t: [float(p[q, q - t]) for q in range(n - t, n)],
    "induction": lambda p, n, t: [float(p[q, q - t + 1]) for q in range(n - t, n)],
    "previous_token_strict": lambda p, n, _: most(p, n, 1, 1),
    "duplicate_token_strict": lambda p, n, t: most(p, n, t, n - t),
    "induction_strict": lambda p, n, t: most(p, n, t - 1, n - t),
    "local_8": lambda p, n, _: [
        sum(float(p[q, k]) for k in range(q + 1) if q - k < 8) for q in range(8, n)
    ],
    "entropy": lambda p, n, _: [
        -sum(float(x) * math.log(float(x)) for x in p[q] if x > 0) for q in range(n)
    ],
    "entropy_normalized": lambda p, n, _: [
        -sum(float(x) * math.log(float(x)) for x in p[q] if x > 0) / math.log(q + 1)
        for q in range(1, n)
    ],
    "distance": lambda p, n, _: [
        sum(float(p[q, k]) * (q - k) for k in range(q + 1)) for q in range(1, n)
    ],
    "distance_relative": lambda p, n, _: [
        sum(float(p[q, k]) * (q - k) for k in range(q + 1)) / q for q in range(1, n)
    ],
    "distance_sink_free": lambda p, n, _: [
        sum(float(p[q, k]) * (q - k) for k in range(1, q + 1))
        / sum(float(p[q, k]) for k in range(1, q + 1))
        for q in range(1, n)
    ],
}


def test_every_pattern_metric_has_a_loop() -> None:
    assert set(LOOPS) == set(PATTERN_METRICS)


@pytest.mark.parametrize("name", sorted(LOOPS))
@settings(max_examples=15, deadline=None)
@given(period=st.integers(5, 9), seed=st.integers(0, 1000))
def test_metrics_equal_plain_loops_on_random_patterns(name: str, period: int, seed: int) -> None:
    n = 2 * period
    pattern = random_pattern(n, seed)
    before = pattern.clone()
    values = LOOPS[name](pattern.double(), n, period)
    assert score(name, pattern, period=period) == pytest.approx(
        sum(values) / len(values), abs=1e-12
    )
    assert torch.equal(pattern, before)
    low, high = PATTERN_METRICS[name].range
    assert low is not None
    assert all(low - 1e-6 <= value <= (high or math.inf) + 1e-6 for value in values)


def test_permuting_heads_permutes_scores() -> None:
    patterns = torch.stack(list(starmap(random_pattern, [(10, 1), (10, 2), (10, 3)])))[None]
    order = [2, 0, 1]
    for metric in PATTERN_METRICS.values():
        facts = sequences(10, period=5)
        values = metric.compute(patterns, facts)
        torch.testing.assert_close(metric.compute(patterns[:, order], facts), values[:, order])


def test_a_tie_is_not_attended_most() -> None:
    pattern = IDEAL["previous_token"].clone()
    pattern[4, :5] = torch.tensor([0.1, 0, 0, 0.45, 0.45])
    pattern[5, :6] = torch.tensor([0.1, 0, 0, 0, 0.5, 0.4])
    assert score("previous_token_strict", pattern) == pytest.approx(8 / 9)


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_float32_is_exact_enough(name: str) -> None:
    pattern = torch.stack([random_pattern(130, seed) for seed in range(4)])[:, None]
    facts = sequences(130, period=65)
    values = PATTERN_METRICS[name].compute(pattern, facts).double().mean()
    exact = PATTERN_METRICS[name].compute(pattern.double(), facts).mean()
    assert float(values) == pytest.approx(float(exact), abs=1e-6, rel=1e-6)


def positional(*patterns: Tensor) -> float:
    """Of one head's patterns in sequences of one length."""
    metric = PATTERN_GROUP_METRICS["positional"]
    assert metric.finish is not None
    batch = torch.stack(patterns)[:, None]
    sums = metric.compute(batch, sequences(batch.shape[-1]))
    assert {value.dtype for value in sums.values()} == {torch.float64}
    numerator, denominator = metric.finish(sums, len(patterns))
    return float(numerator / denominator)


def test_positional_by_paper() -> None:
    """The same in all sequences: 1. Opposite deviations from uniform: 0. Uniform: undefined."""
    assert positional(*[IDEAL["induction"]] * 3) == pytest.approx(1)
    one, other = uniform(4), uniform(4)
    one[3, :2] += torch.tensor([0.1, -0.1])
    other[3, :2] -= torch.tensor([0.1, -0.1])
    assert positional(one, other) == pytest.approx(0, abs=1e-12)
    assert positional(one, uniform(4)) == pytest.approx(1 / 2)
    assert math.isnan(positional(uniform(4), uniform(4)))


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 12), count=st.integers(2, 5), seed=st.integers(0, 1000))
def test_positional_equals_plain_loops(n: int, count: int, seed: int) -> None:
    patterns = [random_pattern(n, 10 * seed + b) for b in range(count)]
    within = around = 0.0
    for q in range(n):
        for k in range(q + 1):
            values = [float(p[q, k]) for p in patterns]
            mean = sum(values) / count
            within += sum((value - mean) ** 2 for value in values)
            around += sum((value - 1 / (q + 1)) ** 2 for value in values)
    assert positional(*patterns) == pytest.approx(1 - within / around, abs=1e-6)
    assert -1e-6 <= positional(*patterns) <= 1 + 1e-6


def test_every_group_metric_is_tested_here() -> None:
    assert set(PATTERN_GROUP_METRICS) == {"positional"}


def test_relation_metrics_count_ranks_below_k() -> None:
    ranks = torch.tensor([[0, 1, 9, 10, 25]])
    means = {
        name: float(metric.compute(ranks, 10).mean()) for name, metric in RELATION_METRICS.items()
    }
    assert means == {
        "relation_score": 0.6,
        "relation_suppression": 0.6,
        "relation_hits_1": 0.2,
        "relation_hits_5": 0.4,
        "relation_hits_10": 0.6,
        "relation_hits_25": 0.8,
        "relation_suppression_hits_1": 0.2,
        "relation_suppression_hits_5": 0.4,
        "relation_suppression_hits_10": 0.6,
        "relation_suppression_hits_25": 0.8,
        "relation_mrr_25": pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 5),
        "relation_suppression_mrr_25": pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 5),
    }
