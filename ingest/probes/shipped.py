"""The probes that come with the project: repeated random tokens, texts, and a needle to be found.

A model that the probe does not fit gets a shorter one, or none where nothing of it would be left.
"""

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Literal

import torch

from catalog.declarations import ProbeSpec
from catalog.errors import InputError
from ingest.probes import haystack
from ingest.probes.classes import TokenClasses
from ingest.probes.sequences import Encoded, SequenceProbe, Vocabulary, content_hash

NAMES = tuple(
    f"{name}{suffix}"
    for name in ("random_repeat", "plain", "markdown", "needle")
    for suffix in ("", "_bos", "_no_bos")
)
SEED = 0
PERIOD = 64
N_SEQUENCES = 16
_TEXTS = {
    "plain": "short English texts",
    "markdown": "English texts in Markdown: headings, lists, stars, tables, code, quotes",
}


def shipped(vocabulary: Vocabulary, classes: TokenClasses) -> list[SequenceProbe]:
    """The project's probes: as the tokenizer does it, and with its BOS token the other way round.

    Attention depends on whether a BOS token stands first, so both ways are kept where the
    vocabulary has one: `random_repeat`, `plain` ..., and beside them either `..._bos` or
    `..._no_bos`. Without a tokenizer there is `random_repeat` alone, and `random_repeat_bos` where
    the configuration names a BOS token.
    """
    adds = vocabulary.adds_bos
    ways = [("", adds)]
    if vocabulary.bos is not None:
        ways.append(("_no_bos" if adds else "_bos", not adds))
    # A model of few positions gets a shorter block; it is part of what the probe's hash is of.
    context = vocabulary.context
    period = PERIOD if context is None else min(PERIOD, (context - 1) // 2)
    probes = []
    for suffix, bos in ways:
        if period > 0:
            probes.append(_random_repeat(f"random_repeat{suffix}", period, bos=bos))
        if vocabulary.tokenizer is None:
            continue
        probes += [_text(name, suffix, classes, bos=bos) for name in _TEXTS]
        if haystack.fits(vocabulary):
            probes.append(_needle(f"needle{suffix}", classes, bos=bos))
    return probes


def _random_repeat(name: str, period: int, *, bos: bool) -> SequenceProbe:
    facts = {"period": period, "sequences": N_SEQUENCES, "seed": SEED, "bos": bos}

    def encode(vocabulary: Vocabulary) -> Encoded:
        ordinary = vocabulary.ordinary_tokens
        if len(ordinary) < period:
            raise InputError(
                f"the model has {len(ordinary)} ordinary tokens; {name} needs {period} different "
                "ones; bring a probe of your own with --probe, and --only"
            )
        generator = torch.Generator().manual_seed(SEED)
        first = _first(vocabulary, bos=bos)
        tokens = []
        for _ in range(N_SEQUENCES):
            chosen = torch.randperm(len(ordinary), generator=generator)[:period]
            block = [ordinary[index] for index in chosen.tolist()]
            tokens.append(first + block + block)
        return Encoded(tokens=tokens, bos=len(first), period=period)

    what = f"{N_SEQUENCES} sequences of {period} distinct random tokens, said twice"
    content = json.dumps(facts, sort_keys=True)
    return _probe(name, "random_repeat", what, content, encode, bos=bos, seed=SEED)


def _text(name: str, suffix: str, classes: TokenClasses, *, bos: bool) -> SequenceProbe:
    file = files("ingest.probes") / "data" / f"{name}.jsonl"
    lines = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]

    def encode(vocabulary: Vocabulary) -> Encoded:
        tokenizer = vocabulary.require_tokenizer(name)
        first = _first(vocabulary, bos=bos)
        room = (vocabulary.context or 1 << 30) - len(first)
        tokens = [
            first + tokenizer(line, add_special_tokens=False).input_ids[:room] for line in lines
        ]
        return Encoded(
            tokens=tokens, bos=len(first), period=None, classes=classes.marks(vocabulary, tokens)
        )

    what = f"{len(lines)} {_TEXTS[name]}"
    content = json.dumps([lines, bos, classes.identity])
    return _probe(f"{name}{suffix}", "text", what, content, encode, bos=bos)


def _needle(name: str, classes: TokenClasses, *, bos: bool) -> SequenceProbe:
    def encode(vocabulary: Vocabulary) -> Encoded:
        first = _first(vocabulary, bos=bos)
        built = haystack.build(vocabulary, first)
        tokens = [one for one, _ in built]
        return Encoded(
            tokens=tokens,
            bos=len(first),
            period=None,
            classes=classes.marks(vocabulary, tokens),
            needles=[needle for _, needle in built],
        )

    what = (
        f"{haystack.COUNT} texts with an unlikely sentence somewhere in them, a question for it "
        "and the answer in its words, after Wu et al. 2024, arXiv:2404.15574"
    )
    content = json.dumps([haystack.identity(), bos, classes.identity])
    return _probe(name, "text", what, content, encode, bos=bos)


def _probe(
    name: str,
    kind: Literal["random_repeat", "text"],
    what: str,
    content: str,
    encode: Callable[[Vocabulary], Encoded],
    *,
    bos: bool,
    seed: int | None = None,
) -> SequenceProbe:
    return SequenceProbe(
        spec=ProbeSpec(
            name=name,
            kind=kind,
            content_hash=content_hash(content),
            seed=seed,
            description=f"{what}, after a BOS token" if bos else what,
        ),
        encode=encode,
    )


def _first(vocabulary: Vocabulary, *, bos: bool) -> list[int]:
    return [vocabulary.bos] if bos and vocabulary.bos is not None else []
