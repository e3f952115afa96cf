"""Token sequences that models run on: repeated random tokens, texts, and users' files."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedTokenizerBase

from catalog.declarations import ProbeSpec
from catalog.errors import InputError

Kind = Literal["random_repeat", "text"]

SHIPPED = tuple(
    f"{name}{suffix}" for name in ("random_repeat", "plain") for suffix in ("", "_bos", "_no_bos")
)
SEED = 0
PERIOD = 64
N_SEQUENCES = 16
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What turns a probe into tokens of one model."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    """Rows of the embedding; the tokenizer may know fewer tokens, or more."""
    context: int | None
    """Longest sequence that the model's positions allow."""

    @property
    def bos(self) -> int | None:
        token: int | None = self.tokenizer.bos_token_id
        return token

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts its BOS token first by itself."""
        return self.bos is not None and self.tokenizer("a").input_ids[:1] == [self.bos]

    @cached_property
    def ordinary_tokens(self) -> list[int]:
        """Tokens that text is made of, ascending: no special or added ones, and no padding rows."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        known = min(len(self.tokenizer), self.size)
        return [token for token in range(known) if token not in special]

    def encode(self, text: str) -> list[int | None]:
        """Tokens of a text without special ones; None for what the model has no embedding of."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        return [t if t < self.size and t != unknown else None for t in tokens]

    def text_of(self, token: int) -> str:
        """What a token stands for in the middle of a text, the space before it included."""
        piece = cast("str", self.tokenizer.convert_ids_to_tokens(token))
        # Decoding a SentencePiece token alone loses its space, as at the start of a text.
        if _SENTENCEPIECE_SPACE in piece:
            return piece.replace(_SENTENCEPIECE_SPACE, " ")
        return cast("str", self.tokenizer.decode([token], clean_up_tokenization_spaces=False))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, sequence by sequence, and what metrics may assume of them."""

    tokens: list[list[int]]
    bos: int
    period: int | None
    classes: Mapping[str, list[list[bool]]] = field(default_factory=dict)
    """By class, for each token of each sequence whether it is in the class."""


@dataclass(frozen=True, kw_only=True)
class SequenceProbe:
    """A named input whose tokens depend on the model's vocabulary."""

    spec: ProbeSpec
    encode: Callable[[Vocabulary], Encoded]
    ignored: tuple[str, ...] = ()
    """What the file asks for and this release does not measure."""


def shipped(vocabulary: Vocabulary) -> list[SequenceProbe]:
    """The project's probes: as the tokenizer does it, and with its BOS token the other way round.

    Attention depends on whether a BOS token stands first, so both ways are kept where the
    vocabulary has one: `random_repeat` and `plain`, and beside them either `..._bos` or
    `..._no_bos`.
    """
    adds = vocabulary.adds_bos
    context = vocabulary.context
    # A model of few positions gets a shorter block; it is part of what the probe's hash is of.
    period = PERIOD if context is None else min(PERIOD, (context - 1) // 2)
    probes = [_random_repeat("random_repeat", period, bos=adds), _plain("plain", bos=adds)]
    if vocabulary.bos is not None:
        suffix = "no_bos" if adds else "bos"
        probes.append(_random_repeat(f"random_repeat_{suffix}", period, bos=not adds))
        probes.append(_plain(f"plain_{suffix}", bos=not adds))
    return probes


def _random_repeat(name: str, period: int, *, bos: bool) -> SequenceProbe:
    facts = {"period": period, "sequences": N_SEQUENCES, "seed": SEED, "bos": bos}

    def encode(vocabulary: Vocabulary) -> Encoded:
        ordinary = vocabulary.ordinary_tokens
        if len(ordinary) < PERIOD:
            raise InputError(
                f"the tokenizer has {len(ordinary)} ordinary tokens; random_repeat needs {PERIOD}"
            )
        generator = torch.Generator().manual_seed(SEED)
        first = [vocabulary.bos] if bos and vocabulary.bos is not None else []
        tokens = []
        for _ in range(N_SEQUENCES):
            chosen = torch.randperm(len(ordinary), generator=generator)[:period]
            block = [ordinary[index] for index in chosen.tolist()]
            tokens.append(first + block + block)
        return Encoded(tokens=tokens, bos=len(first), period=period)

    return SequenceProbe(
        spec=ProbeSpec(
            name=name,
            kind="random_repeat",
            content_hash=_hash(json.dumps(facts, sort_keys=True)),
            seed=SEED,
            description=f"{N_SEQUENCES} sequences of {period} distinct random tokens, said twice"
            + (", after a BOS token" if bos else ""),
        ),
        encode=encode,
    )


def _plain(name: str, *, bos: bool) -> SequenceProbe:
    text = (files("ingest.probes") / "data" / "plain.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line)["text"] for line in text.splitlines()]

    def encode(vocabulary: Vocabulary) -> Encoded:
        first = [vocabulary.bos] if bos and vocabulary.bos is not None else []
        room = (vocabulary.context or 1 << 30) - len(first)
        tokens = [
            first + vocabulary.tokenizer(line, add_special_tokens=False).input_ids[:room]
            for line in lines
        ]
        return Encoded(tokens=tokens, bos=len(first), period=None)

    return SequenceProbe(
        spec=ProbeSpec(
            name=name,
            kind="text",
            content_hash=_hash(json.dumps([lines, bos])),
            description=f"{len(lines)} short English texts"
            + (", after a BOS token" if bos else ""),
        ),
        encode=encode,
    )


def from_file(path: Path) -> SequenceProbe:
    """A user's probe: JSONL, one sequence a line, under the file's stem.

    Each line is `{"tokens": [ids]}`, used as they are, or `{"text": "..."}`, tokenized as the
    tokenizer does by default, or `{"messages": [...]}`, through its chat template. A first line
    `{"probe": {"kind": "random_repeat" | "text", "period": 64, "bos": 0 | 1}}` says what metrics
    may assume.

    Raises:
        InputError: At the first line that cannot be used, named by its number.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    lines = [
        (number, _object(line, f"{path}, line {number}"))
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]
    if path.stem in SHIPPED:
        raise InputError(
            f"{path}: {path.stem} is the name of a probe that comes with the project; "
            "rename the file"
        )
    header = lines.pop(0)[1]["probe"] if lines and "probe" in lines[0][1] else {}
    kind, period, bos = _header(header, path)
    if not lines:
        raise InputError(f"{path} holds no sequence; expected one a line")

    def encode(vocabulary: Vocabulary) -> Encoded:
        tokens = [_tokens(line, f"{path}, line {n}", vocabulary) for n, line in lines]
        sequences = Encoded(tokens=tokens, bos=bos, period=period)
        if period is not None:
            _require_repeated(sequences, path)
        return sequences

    with_classes = any("classes" in line for _, line in lines)
    return SequenceProbe(
        spec=ProbeSpec(
            name=path.stem,
            kind=kind,
            content_hash=_hash(content),
            description=f"{len(lines)} sequences of a user",
        ),
        encode=encode,
        ignored=("classes",) if with_classes else (),
    )


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected an object with tokens, text or messages")
    return content


def _header(header: object, path: Path) -> tuple[Kind, int | None, int]:
    if not isinstance(header, dict):
        raise InputError(f"{path}: probe is {header!r}; expected an object with kind, period, bos")
    facts = header
    kind, period, bos = facts.get("kind", "text"), facts.get("period"), facts.get("bos", 0)
    if kind not in ("random_repeat", "text"):
        raise InputError(f"{path}: kind is {kind!r}; expected random_repeat or text")
    if bos not in (0, 1):
        raise InputError(f"{path}: bos is {bos!r}; expected 0 or 1")
    if kind == "text":
        return "text", None, bos
    if type(period) is not int or period < 1:
        raise InputError(f"{path}: random_repeat needs a period, a whole number; got {period!r}")
    return "random_repeat", period, bos


def _tokens(line: dict[str, Any], where: str, vocabulary: Vocabulary) -> list[int]:
    if "tokens" in line:
        tokens = line["tokens"]
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise InputError(f"{where}: expected tokens to be a list of whole numbers")
        outside = [token for token in tokens if not 0 <= token < vocabulary.size]
        if outside:
            raise InputError(
                f"{where}: token {outside[0]} is not in the vocabulary of {vocabulary.size}"
            )
    else:
        tokens = _tokenized(line, where, vocabulary.tokenizer)
    if len(tokens) < 2:  # noqa: PLR2004 - one token attends to itself alone
        raise InputError(f"{where}: has {len(tokens)} tokens; a pattern needs at least 2")
    if vocabulary.context is not None and len(tokens) > vocabulary.context:
        raise InputError(
            f"{where}: has {len(tokens)} tokens; the model's context is {vocabulary.context}"
        )
    return list(tokens)


def _tokenized(line: dict[str, Any], where: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text, messages = line.get("text"), line.get("messages")
    if not isinstance(text, str) and not isinstance(messages, list):
        raise InputError(f"{where}: expected tokens, text or messages")
    if not isinstance(text, str) and not tokenizer.chat_template:
        raise InputError(f"{where}: has messages, and the tokenizer has no chat template")
    try:
        if isinstance(text, str):
            tokens: Any = tokenizer(text).input_ids
        else:
            tokens = tokenizer.apply_chat_template(cast("Any", messages), return_dict=False)
    except Exception as error:  # templates are programs of the model's makers
        raise InputError(f"{where}: the tokenizer cannot take it: {error}") from error
    return cast("list[int]", tokens)


def _require_repeated(sequences: Encoded, path: Path) -> None:
    assert sequences.period is not None  # noqa: S101 - narrows the type
    for number, tokens in enumerate(sequences.tokens, start=1):
        block = tokens[sequences.bos :]
        first, second = block[: sequences.period], block[sequences.period :]
        if first != second:
            raise InputError(
                f"{path}, sequence {number}: expected {sequences.bos} BOS and a block of "
                f"{sequences.period} tokens twice; got {len(tokens)} tokens that are not that"
            )


def _hash(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
