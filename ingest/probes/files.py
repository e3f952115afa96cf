"""Users' probes: texts, chats and token ids, from JSONL or plain text."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from catalog.declarations import ProbeSpec
from catalog.errors import InputError
from ingest.probes import shipped
from ingest.probes.classes import TokenClasses, require_name
from ingest.probes.sequences import Encoded, Needle, SequenceProbe, Vocabulary, content_hash

Kind = Literal["random_repeat", "text"]
Marks = dict[str, list[list[bool]]]
_Line = tuple[str, dict[str, Any]]
"""Where it stands, for errors, and what it says."""


def from_file(path: Path, classes: TokenClasses) -> SequenceProbe:
    """A user's probe under the file's stem.

    A `.txt` file is cut into texts at blank lines. Any other is JSONL, one sequence a line:
    `{"tokens": [ids]}`, used as they are, or `{"text": "..."}`, tokenized as the tokenizer does by
    default, or `{"messages": [...]}`, through its chat template. A first line
    `{"probe": {"kind": "random_repeat" | "text", "period": 64, "bos": 0 | 1}}` says what metrics
    may assume.

    A line's `"classes": {"name": [0 | 1 per token]}` adds classes of tokens, or replaces declared
    ones on that line; on lines that do not name it, a class that is not declared has no token.
    `"needle": [start, stop]` and `"answer": [start, stop]`, on all lines or none, say where the
    same tokens stand twice.

    Raises:
        InputError: At the first line that cannot be used, named by its number.
    """
    try:
        # Editors on Windows put a byte order mark first.
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if path.stem in shipped.NAMES:
        raise InputError(
            f"{path}: {path.stem} is the name of a probe that comes with the project; "
            "rename the file"
        )
    lines = _paragraphs(content, path) if path.suffix == ".txt" else _lines(content, path)
    header = lines.pop(0)[1]["probe"] if lines and "probe" in lines[0][1] else {}
    kind, period, bos = _header(header, path)
    if not lines:
        raise InputError(f"{path} holds no sequence; expected one a line")

    def encode(vocabulary: Vocabulary) -> Encoded:
        tokens = [_tokens(line, where, vocabulary) for where, line in lines]
        sequences = Encoded(
            tokens=tokens,
            bos=bos,
            period=period,
            classes=_marks(lines, tokens, classes.marks(vocabulary, tokens)),
            needles=_needles(lines, tokens),
        )
        if period is not None:
            _require_repeated(sequences, path)
        return sequences

    return SequenceProbe(
        spec=ProbeSpec(
            name=path.stem,
            kind=kind,
            content_hash=content_hash(json.dumps([content, classes.identity])),
            description=f"{len(lines)} sequences of a user",
        ),
        encode=encode,
    )


def _paragraphs(content: str, path: Path) -> list[_Line]:
    texts = [text.strip("\n") for text in re.split(r"\n[^\S\n]*\n", content) if text.strip()]
    return [
        (f"{path}, paragraph {number}", {"text": text})
        for number, text in enumerate(texts, start=1)
    ]


def _lines(content: str, path: Path) -> list[_Line]:
    return [
        (f"{path}, line {number}", _object(line, f"{path}, line {number}"))
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not JSON: {error}; a file of plain text is to be called .txt"
        ) from error
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


def _tokenized(
    line: dict[str, Any], where: str, tokenizer: PreTrainedTokenizerBase | None
) -> list[int]:
    text, messages = line.get("text"), line.get("messages")
    if not isinstance(text, str) and not isinstance(messages, list):
        raise InputError(f"{where}: expected tokens, text or messages")
    if tokenizer is None:
        raise InputError(f'{where}: this model has no tokenizer; bring {{"tokens": [...]}}')
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


def _marks(
    lines: Sequence[_Line],
    tokens: Sequence[Sequence[int]],
    declared: Mapping[str, list[list[bool]]],
) -> Marks:
    """The declared classes, and over them what the lines say themselves."""
    brought = [
        _own_marks(line.get("classes", {}), where, len(sequence))
        for (where, line), sequence in zip(lines, tokens, strict=True)
    ]
    marks: Marks = dict(declared)
    for name in sorted({name for one in brought for name in one}):
        otherwise = declared.get(name, [[False] * len(sequence) for sequence in tokens])
        marks[name] = [one.get(name, other) for one, other in zip(brought, otherwise, strict=True)]
    return marks


def _own_marks(classes: object, where: str, n_tokens: int) -> dict[str, list[bool]]:
    if not isinstance(classes, dict):
        raise InputError(f"{where}: classes is {classes!r}; expected an object of lists of 0 and 1")
    for name, marks in classes.items():
        require_name(name, where)
        if not isinstance(marks, list) or not all(type(m) is int and m in (0, 1) for m in marks):
            raise InputError(f"{where}: expected class {name} to be a list of 0 and 1")
        if len(marks) != n_tokens:
            raise InputError(
                f"{where}: class {name} has {len(marks)} numbers for {n_tokens} tokens"
            )
    return {name: [mark == 1 for mark in marks] for name, marks in classes.items()}


def _needles(lines: Sequence[_Line], tokens: Sequence[Sequence[int]]) -> list[Needle] | None:
    if not any("needle" in line or "answer" in line for _, line in lines):
        return None
    needles = []
    for (where, line), sequence in zip(lines, tokens, strict=True):
        needle = Needle(needle=_span(line, "needle", where), answer=_span(line, "answer", where))
        try:
            needle.verify(sequence)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        needles.append(needle)
    return needles


def _span(line: Mapping[str, Any], name: str, where: str) -> range:
    match line.get(name):
        case [int(start), int(stop)]:
            return range(start, stop)
        case None:
            raise InputError(
                f"{where}: has no {name}; where one line has needle and answer, all must"
            )
        case other:
            raise InputError(f"{where}: {name} is {other!r}; expected [start, stop]")
