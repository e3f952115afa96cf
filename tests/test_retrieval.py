"""Retrieval scores against plain loops over whole patterns and the model's own logits.

By the definition of Wu et al. 2024, arXiv:2404.15574, section 2: a head copies a token where the
token that it attends to most lies in the needle and is the one that the model says.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from observed import as_rows
from torch import Tensor

import catalog
from ingest.metrics import RETRIEVAL_METRICS
from ingest.probes.sequences import Encoded, Needle
from ingest.progress import Silence
from ingest.readers.loading import LoadedModel
from ingest.request import IngestRequest
from ingest.retrieval import Search
from ingest.run import ingest
from ingest.suites import _passes
from ingest.suites._passes import measure

FEW = 7
"""Tokens that there are: of so few a random model says the right one now and then."""
NEEDLE = 5
ARCHITECTURES = (
    "gpt2",
    "gpt_neox",
    "llama",  # grouped queries
    "falcon multi-query",
    "mistral",  # a window of 12 in every layer
    "gemma2",  # in every other one; capped scores and logits
    "bloom",  # observed by hooks
    "opt",
    "cohere",  # scaled logits
    "gpt_oss",  # sinks, windows
)


def haystacks(n: int, *, seed: int, vocabulary: int = FEW) -> tuple[list[list[int]], list[Needle]]:
    """Random tokens of several lengths, the needle near the answer or beyond a window."""
    generator = torch.Generator().manual_seed(seed)
    tokens, needles = [], []
    for place in range(n):
        before, after = 1 + place % 4, 1 + 2 * (place % 5)
        drawn = torch.randint(vocabulary, (before + NEEDLE + after,), generator=generator).tolist()
        needle = range(before, before + NEEDLE)
        tokens.append([*drawn, *(drawn[i] for i in needle)])
        needles.append(Needle(needle=needle, answer=range(len(drawn), len(drawn) + NEEDLE)))
    return tokens, needles


def encoded(tokens: list[list[int]], needles: list[Needle] | None) -> Encoded:
    return Encoded(tokens=tokens, bos=0, period=None, needles=needles)


def by_loops(
    patterns: Sequence[Tensor], said: Sequence[int], tokens: Sequence[int], needle: Needle
) -> dict[str, Tensor] | None:
    """Both scores of one sequence, [layer, head]; None where the model says nothing of the needle.

    Args:
        patterns: By layer [head, query, key].
        said: The model's likeliest next token, by position.
        tokens: The sequence.
        needle: Where it has one.
    """
    queries = [i - 1 for i in needle.answer if said[i - 1] == tokens[i]]
    if not queries:
        return None
    capped, uncapped = (torch.zeros(len(patterns), len(patterns[0])).double() for _ in range(2))
    for layer, heads in enumerate(patterns):
        for head, rows in enumerate(heads.tolist()):
            copied = []
            for q in queries:
                key = max(range(q + 1), key=rows[q].__getitem__)
                if key in needle.needle and tokens[key] == said[q]:
                    copied.append(key)
            capped[layer, head] = len(set(copied)) / len(needle.needle)
            uncapped[layer, head] = len(copied) / len(needle.needle)
    return {"retrieval": capped, "retrieval_uncapped": uncapped}


def mean(scores: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([one[name] for one in scores]).mean(dim=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_loops_over_eager_attention_and_logits(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = architecture.split(maxsplit=1)[0]
    monkeypatch.setitem(tiny.CONFIGS, name, tiny.CONFIGS[name] | {"vocab_size": FEW})
    tokens, needles = haystacks(60, seed=1)
    eager = tiny.model(architecture, attn_implementation="eager")
    counted = []
    for own, needle in zip(tokens, needles, strict=True):
        with torch.no_grad():
            out = eager(torch.tensor([own]), output_attentions=True)
        said = out.logits[0].argmax(dim=-1).tolist()
        found = by_loops([one[0] for one in out.attentions], said, own, needle)
        counted += [found] if found else []
    assert 0 < len(counted) < len(tokens)
    loaded = LoadedModel(name="m", model=tiny.model(architecture))
    scores = measure(loaded, encoded(tokens, needles), "p", Silence()).scores()
    for metric in RETRIEVAL_METRICS:
        expected = mean(counted, metric)
        assert (expected > 0).any()
        torch.testing.assert_close(scores[metric], expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(_passes, "_batch_size", lambda *_: 2)
    split = measure(loaded, encoded(tokens, needles), "p", Silence()).scores()
    for metric in RETRIEVAL_METRICS:
        torch.testing.assert_close(split[metric], scores[metric], rtol=0, atol=1e-12)


@given(
    seed=st.integers(0, 1 << 30),
    vocabulary=st.integers(1, 4),
    n_rows=st.integers(1, 30),
    window=st.none() | st.integers(1, 30),
)
def test_blocks_and_windows_find_what_loops_find(
    seed: int, vocabulary: int, n_rows: int, window: int | None
) -> None:
    """Patterns, what is said, and the blocks that patterns come in are anything."""
    generator = torch.Generator().manual_seed(seed)
    ((own,), (needle,)) = haystacks(1, seed=seed, vocabulary=vocabulary)
    length, n_heads = len(own), 3
    reach = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (reach < 0) | (reach >= (window or length))
    drawn = torch.rand(2, n_heads, length, length, dtype=torch.float64, generator=generator)
    patterns = drawn.masked_fill(hidden, 0)
    said = torch.randint(vocabulary, (2, length), generator=generator)
    search = Search([needle, needle], torch.tensor([own, own]))
    for rows in as_rows(patterns, n_rows=n_rows, window=window):
        search.observe(0, rows)
    logits = torch.nn.functional.one_hot(said, vocabulary).double()
    for place, (found, is_said) in enumerate(search.results(logits, lambda stream: stream)):
        expected = by_loops([patterns[place]], said[place].tolist(), own, needle)
        assert is_said.any() == (expected is not None)
        for name, metric in RETRIEVAL_METRICS.items():
            scores = metric.compute(found[0], is_said)
            assert torch.equal(scores, expected[name][0] if expected else torch.zeros(n_heads))


def test_a_token_of_the_needle_that_is_copied_twice_counts_once() -> None:
    """Of the needle 5 6 5 the head copies the first 5, twice; the model says all."""
    found = torch.tensor([[0, 1, 0], [0, 1, 2], [-1, -1, -1]])
    said = torch.tensor([True, True, True])
    scores = {name: metric.compute(found, said) for name, metric in RETRIEVAL_METRICS.items()}
    torch.testing.assert_close(scores["retrieval"], torch.tensor([2 / 3, 1, 0]).double())
    torch.testing.assert_close(scores["retrieval_uncapped"], torch.tensor([1, 1, 0]).double())


def test_a_head_cannot_retrieve_what_lies_before_its_window() -> None:
    """The model says all of it; the head sees nothing of the needle, and has 0, not NULL."""
    (own,), (needle,) = haystacks(1, seed=0)
    length = len(own)
    reach = torch.arange(length)[:, None] - torch.arange(length)
    patterns = ((reach >= 0) & (reach < 2)).double().expand(1, 1, -1, -1) / 2
    search = Search([needle], torch.tensor([own]))
    for rows in as_rows(patterns, n_rows=4, window=2):
        search.observe(0, rows)
    following = torch.tensor([*own[1:], 0])
    logits = torch.nn.functional.one_hot(following, FEW)[None].double()
    ((found, said),) = search.results(logits, lambda stream: stream)
    assert said.all()
    for metric in RETRIEVAL_METRICS.values():
        assert metric.compute(found[0], said).tolist() == [0]


def test_a_model_that_says_nothing_of_any_needle_has_no_score(
    duckdb_url: str, tmp_path: Path
) -> None:
    """NULL with the reason; where it says some, sequences of which it says none do not count."""
    folder = tiny.save(tmp_path / "m", "llama")
    tokens, needles = haystacks(4, seed=0, vocabulary=100)
    with torch.no_grad():
        said = [tiny.model("llama")(torch.tensor([own])).logits[0].argmax(-1) for own in tokens]
    for own, needle, most in zip(tokens, needles, said, strict=True):
        assert all(most[i - 1] != own[i] for i in needle.answer)
    probe = tmp_path / "hay.jsonl"
    lines = [
        {
            "tokens": own,
            "needle": [one.needle.start, one.needle.stop],
            "answer": [one.answer.start, one.answer.stop],
        }
        for own, one in zip(tokens, needles, strict=True)
    ]
    probe.write_text("\n".join(map(json.dumps, lines)))
    one = catalog.connect(duckdb_url, create=True)
    ingest(one, IngestRequest(model=str(folder), suites=("patterns",), probe=str(probe), only=True))
    rows = one.sql("SELECT metric, value FROM scores WHERE metric LIKE 'retrieval%'").rows()
    assert {row["metric"] for row in rows} == set(RETRIEVAL_METRICS)
    assert {row["value"] for row in rows} == {None}
    undefined = json.loads(one.sql("SELECT notes FROM runs").rows()[0]["notes"])["undefined"]
    for metric in RETRIEVAL_METRICS:
        assert undefined[metric] == "the model says nothing of any needle on hay"


def test_without_needles_there_is_no_retrieval() -> None:
    tokens, _ = haystacks(3, seed=0)
    loaded = LoadedModel(name="m", model=tiny.model("llama"))
    sums = measure(loaded, encoded(tokens, None), "p", Silence())
    assert not RETRIEVAL_METRICS.keys() & (sums.scores().keys() | sums.undefined.keys())
