"""Relation sets: pairs of words that a head's weights may map from one to the other.

A set is a folder of `*.json` files, each a relation named by its stem: a list of
[source, target] strings, or `{"pairs": [...], "k": 10, "category": "Knowledge"}`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from catalog.declarations import ProbeSpec, RelationSpec
from catalog.errors import InputError

MIN_USABLE = 30
"""Fewer usable pairs than this are skipped: their score would be chance."""
DEFAULT_K = 10
MAX_K = 1_000
SHIPPED = "shipped"
KIND = "relations"

_LLAMA_3_VOCABULARY = 128_256
_LLAMA_3_K = {10: 25, 1: 3}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation: a hit is a target among the `k` largest logits."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    k: int
    category: str | None


@dataclass(frozen=True, kw_only=True)
class RelationSet:
    """Relations measured together, under one probe name."""

    name: str
    relations: tuple[Relation, ...]

    @property
    def spec(self) -> ProbeSpec:
        content = [[r.name, r.k, r.category, r.pairs] for r in self.relations]
        return ProbeSpec(
            name=self.name,
            kind=KIND,
            content_hash=f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}",
            description=f"{len(self.relations)} relations of word pairs",
            relations=tuple(
                RelationSpec(name=r.name, category=r.category, k=r.k, n_pairs=len(r.pairs))
                for r in self.relations
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TokenPairs:
    """The pairs of a relation that a tokenizer can use, as token ids of equal length."""

    relation: Relation
    sources: list[int]
    targets: list[int]
    words: list[str]
    """The sources as they are written."""


def shipped(architecture: str, vocab_size: int) -> RelationSet:
    """The relations that come with the project.

    For Llama 3 the method uses k 25, and 3 for copying, in place of 10 and 1
    (Elhelo and Geva 2024, arXiv:2412.11965, section 3).
    """
    folder = files("ingest.probes") / "data" / "relations"
    relations = [
        _parse(Path(entry.name).stem, entry.read_text(encoding="utf-8"), entry.name)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    ]
    if architecture == "llama" and vocab_size == _LLAMA_3_VOCABULARY:
        relations = [
            Relation(name=r.name, pairs=r.pairs, k=_LLAMA_3_K.get(r.k, r.k), category=r.category)
            for r in relations
        ]
    return RelationSet(name=SHIPPED, relations=tuple(relations))


def from_folder(folder: Path) -> RelationSet:
    """The relations of a user, under the folder's name.

    Raises:
        InputError: If the folder or one of its files cannot be used; names it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; --relations expects one with *.json files")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(f"{folder} has no *.json file; each is one relation, named by its stem")
    name = folder.resolve().name
    if name == SHIPPED:
        raise InputError(
            f"{folder}: {SHIPPED} is the name of the relations that come with the project; "
            "rename the folder"
        )
    relations = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        relations.append(_parse(path.stem, text, str(path)))
    return RelationSet(name=name, relations=tuple(relations))


def usable(relation: Relation, encode: Callable[[str], Sequence[int | None]]) -> TokenPairs:
    """Keep the pairs whose words are one token each, a space put before them.

    Args:
        relation: Words without leading spaces.
        encode: Text to token ids, without special tokens; None for one that the model has not.
    """
    pairs = [(word, encode(f" {word}"), encode(f" {target}")) for word, target in relation.pairs]
    kept = [
        (word, s[0], t[0])
        for word, s, t in pairs
        if len(s) == len(t) == 1 and s[0] is not None and t[0] is not None
    ]
    return TokenPairs(
        relation=relation,
        sources=[source for _, source, _ in kept],
        targets=[target for _, _, target in kept],
        words=[word for word, _, _ in kept],
    )


def usable_of(
    one: RelationSet, encode: Callable[[str], Sequence[int | None]]
) -> tuple[list[TokenPairs], dict[str, str]]:
    """The relations of a set with enough usable pairs, and why the others are skipped, by name.

    Raises:
        InputError: If a user's set has none.
    """
    found = [usable(relation, encode) for relation in one.relations]
    kept = [pairs for pairs in found if len(pairs.sources) >= MIN_USABLE]
    skipped = {
        pairs.relation.name: too_few(len(pairs.sources), len(pairs.relation.pairs))
        for pairs in found
        if len(pairs.sources) < MIN_USABLE
    }
    if not kept and one.name != SHIPPED:
        name, why = next(iter(skipped.items()))
        raise InputError(
            f"relation set {one.name} has nothing that this tokenizer can use ({name}: {why}); "
            "a pair is usable where both words are one token"
        )
    return kept, skipped


def too_few(usable: int, pairs: int) -> str:
    """Why a relation is skipped."""
    return f"{usable} usable pairs of {pairs}, at least {MIN_USABLE} are needed"


def _parse(name: str, text: str, where: str) -> Relation:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    facts = content if isinstance(content, dict) else {"pairs": content}
    pairs, k, category = facts.get("pairs"), facts.get("k", DEFAULT_K), facts.get("category")
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise InputError(f"{where}: expected a list of [source, target] strings under `pairs`")
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise InputError(f"{where}: k is {k!r}; expected a whole number from 1 to {MAX_K}")
    if not (category is None or (isinstance(category, str) and category)):
        raise InputError(f"{where}: category is {category!r}; expected a word")
    return Relation(name=name, pairs=tuple((s, t) for s, t in pairs), k=k, category=category)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(_is_text(x) for x in pair)  # noqa: PLR2004 - a pair


def _is_text(word: object) -> bool:
    """Whether this is a string of characters: JSON can spell halves of one, too."""
    return isinstance(word, str) and not any(0xD800 <= ord(letter) < 0xE000 for letter in word)  # noqa: PLR2004 - surrogates
