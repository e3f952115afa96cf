"""Classes of tokens: declared by name over a token's text, measured on any probe.

A token may be in several classes: every `newline` that is nothing else is `whitespace` too, and
every `hash` and `star` is `punctuation`. Special tokens are in `special` and in no other.
"""

import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from catalog.errors import InputError

if TYPE_CHECKING:
    from ingest.probes.vocabulary import Vocabulary

VERSION = 1
"""Raised when a built-in class gets other tokens; what was measured with it is measured again."""

SPECIAL = "special"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _only(characters: str) -> Callable[[str], bool]:
    """Nothing but some of these characters, whatever whitespace surrounds them."""
    allowed = frozenset(characters)
    return lambda text: bool(text.strip()) and allowed.issuperset(text.strip())


BUILT_IN: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "newline": lambda text: "\n" in text or "\r" in text,
        "whitespace": str.isspace,
        "punctuation": _only(string.punctuation),
        "digit": _only(string.digits),
        "hash": _only("#"),
        "star": _only("*"),
    }
)
"""Of a token's text as it stands within a text: ' ##' is `hash`, '**\\n' is `star` and `newline`.

`newline` has a line break in it, `whitespace` is nothing else than whitespace; `punctuation` and
`digit` are those of ASCII. Decoders give part of a character as U+FFFD, which is in none.
"""

NAMES = (*BUILT_IN, SPECIAL)


@dataclass(frozen=True, kw_only=True)
class TokenClasses:
    """The built-in classes, and a user's own besides them."""

    own: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions by name; a token is in a class where its whole text matches."""

    @property
    def identity(self) -> str:
        """Equal exactly where the same tokens are in the same classes."""
        return json.dumps([VERSION, sorted(self.own.items())])

    def members(self, vocabulary: "Vocabulary", tokens: Iterable[int]) -> dict[str, frozenset[int]]:
        """Which of these tokens are in which class; without a tokenizer there are no classes."""
        if vocabulary.tokenizer is None:
            return {}
        occurring = set(tokens)
        special = occurring & vocabulary.special_tokens
        texts = {token: vocabulary.text_of(token) for token in occurring - special}
        tests = dict(BUILT_IN)
        for name, expression in self.own.items():
            tests[name] = _matches(re.compile(expression))
        found = {
            name: frozenset(token for token, text in texts.items() if test(text))
            for name, test in tests.items()
        }
        return found | {SPECIAL: frozenset(special)}

    def marks(
        self, vocabulary: "Vocabulary", sequences: Sequence[Sequence[int]]
    ) -> dict[str, list[list[bool]]]:
        """Per class and sequence, whether each token is in the class."""
        members = self.members(vocabulary, (token for tokens in sequences for token in tokens))
        return {
            name: [[token in inside for token in tokens] for tokens in sequences]
            for name, inside in members.items()
        }


def declared(definitions: Sequence[str]) -> TokenClasses:
    """A user's classes, each `NAME=REGEX`.

    Raises:
        InputError: If a name is none or taken, or an expression is none; it says which and why.
    """
    own: dict[str, str] = {}
    for definition in definitions:
        name, equals, expression = definition.partition("=")
        if not equals or not expression:
            raise InputError(f"token class {definition!r}: expected NAME=REGEX, as in brace=[{{}}]")
        require_name(name, f"token class {definition!r}")
        if name in NAMES:
            raise InputError(
                f"token class {name} comes with the project ({', '.join(NAMES)}); "
                "give yours another name"
            )
        if name in own:
            raise InputError(f"token class {name} is declared twice")
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"token class {name}: {expression!r} is no regular expression: {error}"
            ) from error
        own[name] = expression
    return TokenClasses(own=own)


def require_name(name: str, where: str) -> None:
    """See that a class can be called so, as metrics are named after it.

    Raises:
        InputError: If it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: {name!r} cannot name a class; expected small letters, digits and _, "
            "a letter first"
        )


def _matches(expression: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: expression.fullmatch(text) is not None
