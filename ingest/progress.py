"""How long work tells what it is doing; the command line draws it, others may ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Told of stages and steps; must be cheap, and must not raise."""

    def stage(self, text: str) -> None:
        """A piece of work of unknown length begins."""

    def steps(self, text: str, total: int) -> None:
        """A piece of work of `total` steps begins."""

    def advance(self) -> None:
        """One step is done."""

    def note(self, text: str) -> None:
        """Something that the user should know, and that remains when the work is done."""


class Silence:
    """Progress that nobody watches."""

    def stage(self, text: str) -> None: ...

    def steps(self, text: str, total: int) -> None: ...

    def advance(self) -> None: ...

    def note(self, text: str) -> None: ...
