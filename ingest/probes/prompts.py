"""Prompts around a relation's sources, for what heads do with them in a run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from catalog.declarations import ProbeSpec
from ingest.probes.relations import RelationSet, TokenPairs
from ingest.probes.sequences import Vocabulary

KIND = "relation_prompts"

TEMPLATES = {
    "means": "No {} means no",
    "story": "The story of {} contains",
    "document": "This is a document about {}",
    "think": "When I think about {} I think about",
}
"""By the name that stands after the set's (`shipped:means`).

Source: Elhelo and Geva 2024, arXiv:2412.11965 (dynamic relation scores).
"""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids up to the source, and from it on."""

    before: tuple[int, ...]
    rest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptedPairs:
    """Pairs of a relation whose sources stand as one token in a template's prompts."""

    pairs: TokenPairs
    prompts: list[Prompt]
    targets: list[int]

    @property
    def n_dropped(self) -> int:
        """Usable pairs whose source is cut otherwise in the prompt."""
        return len(self.pairs.targets) - len(self.targets)


class Template:
    """One template in a model's tokens, with a BOS token where the tokenizer adds one."""

    def __init__(self, name: str, vocabulary: Vocabulary) -> None:
        """Tokenize what stands before the source."""
        self.name, self._text = name, TEMPLATES[name]
        self._vocabulary = vocabulary
        first = vocabulary.bos if vocabulary.adds_bos else None
        self._first = [] if first is None else [first]
        self._before = vocabulary.encode(self._text.partition(" {}")[0])
        self._known: dict[int, Prompt | None] = {}

    def prompted(self, pairs: TokenPairs) -> PromptedPairs:
        """The pairs whose source is the token it is alone, where it stands in the prompt."""
        asked = zip(pairs.words, pairs.sources, pairs.targets, strict=True)
        found = [(self._prompt(word, source), target) for word, source, target in asked]
        kept = [(prompt, target) for prompt, target in found if prompt is not None]
        return PromptedPairs(
            pairs=pairs,
            prompts=[prompt for prompt, _ in kept],
            targets=[target for _, target in kept],
        )

    def spec(self, of: RelationSet) -> ProbeSpec:
        """This template's probe of a relation set."""
        content = [self._text, bool(self._first), of.spec.content_hash]
        return ProbeSpec(
            name=f"{of.name}:{self.name}",
            kind=KIND,
            content_hash=f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}",
            description=f"sources of {of.name} as X in {self._text.format('X')!r}"
            + (", after a BOS token" if self._first else ""),
            relations=of.spec.relations,
        )

    def _prompt(self, word: str, source: int) -> Prompt | None:
        if source not in self._known:
            tokens = self._vocabulary.encode(self._text.format(word))
            self._known[source] = self._split(tokens, source)
        return self._known[source]

    def _split(self, tokens: Sequence[int | None], source: int) -> Prompt | None:
        place = len(self._before)
        known = [token for token in tokens if token is not None]
        # What comes before reads as it does alone, so the source's token is the word, all of it.
        if len(known) < len(tokens) or known[: place + 1] != [*self._before, source]:
            return None
        return Prompt(before=(*self._first, *known[:place]), rest=tuple(known[place:]))
