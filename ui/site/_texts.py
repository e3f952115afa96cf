"""Texts of the catalog as a page shows them: as text, and where there is room for them."""

import re
from collections.abc import Callable, Iterable

_MARKDOWN = re.compile(r"([!-,:-@\[-^`{-~]|(?<![^\W_])[-._/]|[-._/](?![^\W_]))")
"""Signs that Markdown may read. Between letters or digits it reads no hyphen, dot, slash or
underline: most names stay as they are, also where a screen reader reads them out."""
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of what stands beside them."""
_SEAM = re.compile(
    r"(?<=:)(?=//|streamlit:)|(?<=@)(?=\w)|(?<=www)(?=\.)|(?<=[-<>~=])(?=[-<>~=])", re.IGNORECASE
)
"""Within what Streamlit makes links, arrows and pictures of even where its marks are escaped."""
_JOINER = "\u2060"
"""Takes no room, and lets no line break."""
_SHOWN_CHARACTERS = 60


def plain(text: str) -> str:
    """Text for places where Streamlit reads Markdown, so that names show as they are."""
    straight = _TURNING.sub(lambda found: f"U+{ord(found[0]):04X}", text)
    return _MARKDOWN.sub(r"\\\1", _SEAM.sub(_JOINER, straight))


def short(text: str) -> str:
    """A name where there is no room for all of it: how it begins and how it ends."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    end = _SHOWN_CHARACTERS // 3
    return f"{text[: _SHOWN_CHARACTERS - end - 1]}…{text[-end:]}"


def in_short(options: Iterable[str]) -> Callable[[str], str]:
    """How a widget shows its options: in short, and no two alike, since it tells them by that."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for one in options:
        name, number = short(one), 1
        while name in taken:
            number += 1
            name = f"{short(one)} ({number})"
        names[one] = name
        taken.add(name)
    return lambda one: names.get(one, one)
