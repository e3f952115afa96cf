"""A needle in a haystack: one unlikely sentence in a plain text, asked for at the end.

    ... filler, "The baker's spare key hangs" NEEDLE ".", filler ...
    "Question: Where does the baker's spare key hang? Answer: The baker's spare key hangs" NEEDLE

NEEDLE is both times the same tokens, so that a head that copies from it can be told by where it
attends while the model says it. Each sequence has its own needle at its own depth, 0.1 to 0.9 of
the filler.

Source of the idea: Wu et al. 2024, arXiv:2404.15574 (section 2: retrieval heads).
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ingest.probes.sequences import Needle, Vocabulary

COUNT = 9
"""Sequences."""
FILLER = 320
"""Tokens of filler in a sequence, fewer where the context is smaller."""
MIN_FILLER = 24
"""With less there is no haystack."""


def fits(vocabulary: Vocabulary) -> bool:
    """Whether the model's context has room for needle, question, answer and some haystack.

    Nor does the probe fit a tokenizer that drops words it does not know, and with them a needle.
    """
    if not all(parts["needle"] for parts in _parts(vocabulary)):
        return False
    return vocabulary.context is None or vocabulary.context >= _longest(vocabulary) + MIN_FILLER + 1


def build(vocabulary: Vocabulary, first: list[int]) -> list[tuple[list[int], Needle]]:
    """Token ids and where the needle is, sequence by sequence; all are equally long.

    Args:
        vocabulary: Of a model with a tokenizer that this `fits`.
        first: What stands before every text: a BOS token or nothing.
    """
    length = _longest(vocabulary) + FILLER + len(first)
    if vocabulary.context is not None:
        length = min(length, vocabulary.context)
    filler = _data()["filler"]
    sentences = [_ids(vocabulary, f" {sentence}") for sentence in filler]
    built = []
    for place, parts in enumerate(_parts(vocabulary)):
        room = length - len(first) - sum(map(len, parts.values())) - len(parts["needle"])
        start = place * len(sentences) // COUNT
        before, after = _split(sentences[start:] + sentences[:start], room, (place + 1) / 10)
        tokens = first + before + parts["cue"]
        needle = range(len(tokens), len(tokens) + len(parts["needle"]))
        tokens += parts["needle"] + parts["stop"] + after + parts["question"]
        answer = range(len(tokens), len(tokens) + len(needle))
        built.append((tokens + parts["needle"], Needle(needle=needle, answer=answer)))
    return built


def identity() -> str:
    """Equal exactly where a tokenizer gives the same sequences."""
    return json.dumps([COUNT, FILLER, MIN_FILLER, _data()])


@cache
def _data() -> dict[str, Any]:
    text = (files("ingest.probes") / "data" / "needle.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _parts(vocabulary: Vocabulary) -> list[dict[str, list[int]]]:
    """All but the filler, of each sequence."""
    return [
        {
            "cue": _ids(vocabulary, f" {one['cue']}"),
            "needle": _ids(vocabulary, f" {one['needle']}"),
            "stop": _ids(vocabulary, "."),
            "question": _ids(vocabulary, f"\n\nQuestion: {one['question']}\nAnswer: {one['cue']}"),
        }
        for one in _data()["needles"][:COUNT]
    ]


def _longest(vocabulary: Vocabulary) -> int:
    """Tokens of the longest needle with cue and question, and of its answer."""
    return max(sum(map(len, parts.values())) + len(parts["needle"]) for parts in _parts(vocabulary))


def _split(sentences: list[list[int]], room: int, depth: float) -> tuple[list[int], list[int]]:
    """As much filler as there is room for, cut between two sentences near a depth.

    What is too much is taken away at the beginning: a text may begin in mid-sentence, but none
    ends so before the question.
    """
    used: list[list[int]] = []
    # The filler begins anew where a tokenizer makes few tokens of it.
    while sum(map(len, used)) < room:
        used.append(sentences[len(used) % len(sentences)])
    tokens = [token for sentence in used for token in sentence]
    surplus = len(tokens) - room
    ends = [-surplus]
    for sentence in used:
        ends.append(ends[-1] + len(sentence))
    cut = min((end for end in ends if end > 0), key=lambda end: abs(end - depth * room))
    tokens = tokens[surplus:]
    return tokens[:cut], tokens[cut:]


def _ids(vocabulary: Vocabulary, text: str) -> list[int]:
    tokenizer = vocabulary.require_tokenizer("needle")
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens
