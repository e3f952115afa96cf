"""Every pattern metric on every architecture, against sums over the model's own eager attention."""

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from ingest.metrics import CLASS_METRICS, PATTERN_GROUP_METRICS, PATTERN_METRICS
from ingest.probes.sequences import Encoded
from ingest.progress import Silence
from ingest.readers.architectures import LAYOUTS
from ingest.readers.loading import LoadedModel
from ingest.suites._passes import measure

PERIOD = 13
"""Longer than the windows of tiny models, so that they hide what was said before."""
N = 2 * PERIOD
REACH = np.arange(N)[:, None] - np.arange(N)
ALL = [*sorted(LAYOUTS), *tiny.VARIANTS]

Array = NDArray[np.float64]


def sequences(*, is_repeated: bool) -> Encoded:
    """Three of one length; in texts some tokens are said several times."""
    generator = torch.Generator().manual_seed(7)
    if is_repeated:
        once = [torch.randperm(200, generator=generator)[:PERIOD] + 3 for _ in range(3)]
        return Encoded(tokens=[one.tolist() * 2 for one in once], bos=0, period=PERIOD)
    tokens = torch.randint(3, 20, (3, N), generator=generator).tolist()
    marks = [[token % 3 == 0 for token in one] for one in tokens]
    return Encoded(tokens=tokens, bos=0, period=None, classes={"c": marks})


def by_sums(p: Array, encoded: Encoded) -> dict[str, Array]:
    """Scores per layer and head.

    Args:
        p: Whole patterns, [layer, sequence, head, query, key].
        encoded: Their sequences.
    """
    behind = {by: p.diagonal(-by, -2, -1) for by in range(N)}
    allowed = (p > 0).any(axis=(1, 2)).sum(axis=-1)[:, None, None]
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))
    entropy = -(p * logs).sum(axis=-1)
    free = p[..., 1:, 1:]
    largest = p.max(axis=-1)
    tie_free = (p == largest[..., None]).sum(axis=-1) == 1
    most = (p == largest[..., None]) & tie_free[..., None]
    uniform = np.tri(N) / np.arange(1, N + 1)[:, None]
    apart = np.square(p - p.mean(axis=1, keepdims=True)).sum(axis=(1, 3, 4))
    found = {
        "previous_token": behind[1],
        "previous_token_strict": most.diagonal(-1, -2, -1),
        "current_token": behind[0][..., 1:],
        "first_token": p[..., 1:, 0],
        "entropy": entropy,
        "entropy_normalized": entropy[..., 1:] / np.log(allowed[..., 1:]),
        "distance": (p * REACH).sum(axis=-1)[..., 1:],
        "distance_relative": (p * REACH).sum(axis=-1)[..., 1:] / np.arange(1, N),
        "distance_sink_free": (free * REACH[1:, 1:]).sum(axis=-1) / free.sum(axis=-1),
        "local_8": (p * ((REACH >= 0) & (REACH < 8))).sum(axis=-1)[..., 8:],
        "confidence": largest[..., 1:],
    }
    if encoded.period:
        for ahead, name in enumerate(("duplicate_token", "induction")):
            second = slice(ahead, None)  # the diagonal ahead begins within the first copy
            found[name] = behind[PERIOD - ahead][..., second]
            found[f"{name}_strict"] = most.diagonal(ahead - PERIOD, -2, -1)[..., second]
    scores = {name: values.mean(axis=(1, 3)) for name, values in found.items()}
    scores["positional"] = 1 - apart / np.square(p - uniform).sum(axis=(1, 3, 4))
    if encoded.period is None:
        tokens = np.array(encoded.tokens)
        is_same = np.tril(tokens[:, :, None] == tokens[:, None], -1)
        repeats = is_same.any(axis=-1)[:, None]
        for ahead, name in enumerate(("same_token_mass", "induction_mass")):
            keys = np.zeros_like(is_same)
            keys[..., ahead:] = is_same[..., : N - ahead]
            mass = (p * keys[:, None]).sum(axis=-1)
            scores[name] = mass.sum(axis=(1, 3), where=repeats) / repeats.sum()
        members = np.array(encoded.classes["c"])[:, None, None]
        mass = (p * members).sum(axis=-1)
        is_seen = (REACH >= 0) & (allowed[:, 0, 0, :, None] > REACH)
        share = (members * is_seen[:, None, None]).sum(axis=-1) / allowed
        scores["token_mass[c]"] = mass[..., 1:].mean(axis=(1, 3))
        scores["token_mass_last[c]"] = mass[..., -1].mean(axis=1)
        scores["token_lift[c]"] = scores["token_mass[c]"] / share[..., 1:].mean(axis=(1, 3))
    return scores


@pytest.mark.parametrize("is_repeated", [True, False], ids=["repeated", "text"])
@pytest.mark.parametrize("architecture", ALL)
def test_scores_are_those_of_the_models_eager_attention(
    architecture: str, *, is_repeated: bool
) -> None:
    encoded = sequences(is_repeated=is_repeated)
    one = LoadedModel(name=architecture, model=tiny.model(architecture))
    found = measure(one, encoded, "mine", Silence(), with_outputs=False).scores()
    eager = tiny.model(architecture, attn_implementation="eager")
    with torch.inference_mode():
        attention = eager(
            torch.tensor(encoded.tokens), output_attentions=True, use_cache=False
        ).attentions
    own = [patterns for patterns in attention if patterns is not None]
    expected = by_sums(torch.stack(own).double().numpy(), encoded)
    assert found.keys() == expected.keys()
    has_heads = ~found["entropy"].isnan().all(dim=1)
    assert int(has_heads.sum()) == len(own)
    for name, values in expected.items():
        np.testing.assert_allclose(
            found[name][has_heads], values, rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_every_metric_of_patterns_is_compared() -> None:
    growing = np.tri(N) * np.arange(1, N + 1)
    p = growing / growing.sum(axis=-1, keepdims=True) * np.ones((1, 3, 1, 1, 1))
    both = by_sums(p, sequences(is_repeated=True)) | by_sums(p, sequences(is_repeated=False))
    compared = {name.partition("[")[0] for name in both}
    assert compared == {*PATTERN_METRICS, *PATTERN_GROUP_METRICS, *CLASS_METRICS}
