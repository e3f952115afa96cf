"""Token sequences that models run on, and what metrics may assume of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from catalog.declarations import ProbeSpec
from catalog.errors import InputError
from ingest.probes.vocabulary import Vocabulary

__all__ = ["Encoded", "Needle", "SequenceProbe", "Vocabulary", "content_hash"]


@dataclass(frozen=True, kw_only=True)
class Needle:
    """Where a sequence holds something to be found, and where it is said again."""

    needle: range
    """Positions of the needle in the haystack."""
    answer: range
    """Positions of the same tokens where the model is to say them, after the needle."""

    def verify(self, tokens: Sequence[int]) -> None:
        """See that both stand in a sequence, and are the same tokens.

        Raises:
            InputError: If not; the sentence is to be put after the sequence's place.
        """
        for name, span in (("needle", self.needle), ("answer", self.answer)):
            if not 0 <= span.start < span.stop <= len(tokens):
                raise InputError(
                    f"{name} is [{span.start}, {span.stop}]; expected the start and stop of some "
                    f"of the {len(tokens)} tokens"
                )
        if self.needle.stop > self.answer.start:
            raise InputError("the answer must begin after the needle's end")
        if [tokens[i] for i in self.needle] != [tokens[i] for i in self.answer]:
            raise InputError("the tokens of the answer are not those of the needle")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, sequence by sequence, and what metrics may assume of them."""

    tokens: list[list[int]]
    bos: int
    period: int | None
    classes: Mapping[str, list[list[bool]]] = field(default_factory=dict)
    """Per class and sequence, whether each token is in the class; empty where none are declared."""
    needles: list[Needle] | None = None
    """One per sequence, where each is to find one."""


@dataclass(frozen=True, kw_only=True)
class SequenceProbe:
    """A named input whose tokens depend on the model's vocabulary."""

    spec: ProbeSpec
    encode: Callable[[Vocabulary], Encoded]


def content_hash(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
