"""Pattern metrics against values derived on paper, and against plain loops."""

import math
from collections.abc import Callable
from itertools import starmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from observed import as_rows
from torch import Tensor

from ingest.metrics import (
    CLASS_METRICS,
    PATTERN_GROUP_METRICS,
    PATTERN_METRICS,
    RELATION_METRICS,
    Sequences,
    class_mass,
)

PERIOD = 5


def values_of(
    name: str, patterns: Tensor, facts: Sequences, *, n_rows: int | None = None
) -> Float[Tensor, "batch head position"]:
    """A metric's values over all positions, from blocks of so many rows."""
    compute = PATTERN_METRICS[name].compute
    return torch.cat([compute(rows, facts) for rows in as_rows(patterns, n_rows=n_rows)], dim=2)


def score(
    name: str,
    patterns: Tensor,
    *,
    bos: int = 0,
    period: int | None = None,
    tokens: list[int] | None = None,
    n_rows: int | None = None,
) -> float:
    """The mean over positions, for a batch of one with one head."""
    known = None if tokens is None else torch.tensor([tokens])
    facts = Sequences(bos=bos, period=period, tokens=known)
    values = values_of(name, patterns[None, None].double(), facts, n_rows=n_rows)
    return float(values.nanmean())


def words(period: int) -> list[int]:
    """Tokens of a text in which some occur once, some often, and one follows itself."""
    return [1, 2, 1, 3, 3, 4, 1, 2, 5, *range(6, 6 + 2 * period)][: 2 * period]


def attending(n: int, key: Callable[[int], int]) -> Tensor:
    """A pattern in which query q gives all its attention to key(q)."""
    patterns = torch.zeros(n, n)
    for q in range(n):
        patterns[q, key(q)] = 1
    return patterns


def uniform(n: int) -> Tensor:
    return torch.ones(n, n).tril() / torch.arange(1.0, n + 1)[:, None]


def random_pattern(n: int, seed: int, *, window: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n, generator=generator)
    ones = torch.ones(n, n)
    hidden = ones.triu(1) + (0 if window is None else ones.tril(-window))
    return logits.masked_fill(hidden > 0, -math.inf).softmax(-1)


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


def after_same(p: Tensor, tokens: list[int], n: int, ahead: int) -> list[float]:
    """Per query whose token occurs before, what the keys there (or the next ones) get."""
    earlier = {q: [k for k in range(q) if tokens[k] == tokens[q]] for q in range(n)}
    return [sum(float(p[q, k + ahead]) for k in found) for q, found in earlier.items() if found]


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
    "same_token_mass": lambda p, n, t: after_same(p, words(t), n, 0),
    "induction_mass": lambda p, n, t: after_same(p, words(t), n, 1),
}


def test_every_pattern_metric_has_a_loop() -> None:
    assert set(LOOPS) == set(PATTERN_METRICS)


@pytest.mark.parametrize("name", sorted(LOOPS))
@settings(max_examples=15, deadline=None)
@given(period=st.integers(5, 9), seed=st.integers(0, 1000), n_rows=st.integers(1, 20))
def test_metrics_equal_plain_loops_on_random_patterns(
    name: str, period: int, seed: int, n_rows: int
) -> None:
    n = 2 * period
    pattern = random_pattern(n, seed)
    before = pattern.clone()
    values = LOOPS[name](pattern.double(), n, period)
    found = score(name, pattern, period=period, tokens=words(period), n_rows=n_rows)
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert torch.equal(pattern, before)
    low, high = PATTERN_METRICS[name].range
    assert low is not None
    assert all(low - 1e-6 <= value <= (high or math.inf) + 1e-6 for value in values)


def test_permuting_heads_permutes_scores() -> None:
    patterns = torch.stack(list(starmap(random_pattern, [(10, 1), (10, 2), (10, 3)])))[None]
    order = [2, 0, 1]
    facts = Sequences(period=5, tokens=torch.tensor([words(5)]))
    for name in PATTERN_METRICS:
        values = values_of(name, patterns, facts)
        permuted = values_of(name, patterns[:, order], facts)
        torch.testing.assert_close(permuted, values[:, order], equal_nan=True)


def test_a_tie_is_not_attended_most() -> None:
    pattern = IDEAL["previous_token"].clone()
    pattern[4, :5] = torch.tensor([0.1, 0, 0, 0.45, 0.45])
    pattern[5, :6] = torch.tensor([0.1, 0, 0, 0, 0.5, 0.4])
    assert score("previous_token_strict", pattern) == pytest.approx(8 / 9)


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_float32_is_exact_enough(name: str) -> None:
    pattern = torch.stack([random_pattern(130, seed) for seed in range(4)])[:, None]
    facts = Sequences(period=65, tokens=torch.tensor([words(65)] * 4))
    values = values_of(name, pattern, facts, n_rows=40).double().nanmean()
    exact = values_of(name, pattern.double(), facts).nanmean()
    assert float(values) == pytest.approx(float(exact), abs=1e-6, rel=1e-6)


def positional(*patterns: Tensor, n_rows: int | None = None, window: int | None = None) -> float:
    """Of one head's patterns in sequences of one length."""
    metric = PATTERN_GROUP_METRICS["positional"]
    assert metric.finish is not None
    numerator = denominator = torch.zeros(1, dtype=torch.float64)
    for rows in as_rows(torch.stack(patterns)[:, None], n_rows=n_rows, window=window):
        sums = metric.compute(rows)
        assert {value.dtype for value in sums.values()} == {torch.float64}
        some, of = metric.finish(sums, len(patterns))
        numerator, denominator = numerator + some, denominator + of
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
@given(
    n=st.integers(2, 12),
    count=st.integers(2, 5),
    seed=st.integers(0, 1000),
    n_rows=st.integers(1, 12),
    window=st.one_of(st.none(), st.integers(2, 12)),
)
def test_positional_equals_plain_loops(
    n: int, count: int, seed: int, n_rows: int, window: int | None
) -> None:
    patterns = [random_pattern(n, 10 * seed + b, window=window) for b in range(count)]
    within = around = 0.0
    for q in range(n):
        for k in range(q + 1):
            values = [float(p[q, k]) for p in patterns]
            mean = sum(values) / count
            within += sum((value - mean) ** 2 for value in values)
            around += sum((value - 1 / (q + 1)) ** 2 for value in values)
    found = positional(*patterns, n_rows=n_rows, window=window)
    assert found == pytest.approx(1 - within / around, abs=1e-6)
    assert -1e-6 <= found <= 1 + 1e-6


def test_every_group_metric_is_tested_here() -> None:
    assert set(PATTERN_GROUP_METRICS) == {"positional"}


# Classes of tokens.


def of_class(
    name: str,
    patterns: Tensor,
    members: list[list[int]],
    *,
    n_rows: int | None = None,
    window: int | None = None,
) -> float:
    """A metric of a class, over a batch of sequences with one head."""
    classes = {"c": torch.tensor(members) > 0, "other": torch.tensor(members) == 0}
    numerator = denominator = 0.0
    for rows in as_rows(patterns[:, None].double(), n_rows=n_rows, window=window):
        found = class_mass(rows, Sequences(classes=classes))["c"]
        some, of = CLASS_METRICS[name].compute(*found, rows)
        assert some.shape[0] == of.shape[0]
        assert some.shape[2] == of.shape[2]
        numerator, denominator = numerator + float(some.sum()), denominator + float(of.sum())
    return numerator / denominator if denominator else math.nan


def test_attention_to_a_class_by_paper() -> None:
    """Uniform attention in which keys 1 and 2 of four are of the class."""
    members = [[0, 1, 1, 0]]
    mass = (1 / 2 + 2 / 3 + 2 / 4) / 3
    assert of_class("token_mass", uniform(4)[None], members) == pytest.approx(mass)
    assert of_class("token_mass_last", uniform(4)[None], members) == pytest.approx(1 / 2)
    assert of_class("token_lift", uniform(4)[None], members) == pytest.approx(1)
    # All attention on position 1 from there on: the class gets all of it.
    first = attending(4, lambda q: min(q, 1))[None]
    assert of_class("token_mass", first, members) == 1
    assert of_class("token_lift", first, members) == pytest.approx(1 / mass)
    nobody = [[0, 0, 0, 0]]
    assert of_class("token_mass", first, nobody) == of_class("token_mass_last", first, nobody) == 0
    assert math.isnan(of_class("token_lift", first, nobody))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 12),
    seed=st.integers(0, 1000),
    n_rows=st.integers(1, 12),
    window=st.one_of(st.none(), st.integers(2, 12)),
)
def test_class_metrics_equal_plain_loops(
    n: int, seed: int, n_rows: int, window: int | None
) -> None:
    patterns = torch.stack([random_pattern(n, 3 * seed + b, window=window) for b in range(3)])
    generator = torch.Generator().manual_seed(seed)
    members = torch.randint(2, (3, n), generator=generator)
    members[0, -1] = 1  # a key that the last query, at least, may attend to
    mass, share, last = [], [], []
    for pattern, is_member in zip(patterns.double(), members.tolist(), strict=True):
        for q in range(n):
            keys = range(max(0, q + 1 - (window or n)), q + 1)
            got = sum(float(pattern[q, k]) for k in keys if is_member[k])
            if q:
                mass.append(got)
                share.append(sum(is_member[k] for k in keys) / len(keys))
            if q == n - 1:
                last.append(got)
    expected = {
        "token_mass": sum(mass) / len(mass),
        "token_mass_last": sum(last) / len(last),
        "token_lift": sum(mass) / sum(share),
    }
    assert set(expected) == set(CLASS_METRICS)
    for name, value in expected.items():
        found = of_class(name, patterns, members.tolist(), n_rows=n_rows, window=window)
        assert found == pytest.approx(value, rel=1e-6)


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
