"""What is asked for, to be measured or stored: plain data, so that a queue can carry it.

Who only asks, such as the page and the scheduler, needs no torch for it.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from catalog import patterns
from catalog.errors import UsageError
from ingest.probes import classes

SUITE_NAMES = ("relations", "weights", "salient", "patterns", "dynamic")
"""All suites, in the order in which they are measured."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model to read, and how."""

    model: str
    """A folder, a GGUF file or a Hub id."""
    name: str | None = None
    """What the catalog calls it; by default what it is called where it lies."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    device: str = "auto"
    dtype: str = "auto"
    force: bool = False
    """What is there already, of the same contents, is measured again."""
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: If there are no such devices or numbers.
        """
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device} is unknown; expected auto, cpu or cuda")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype} is unknown; expected {', '.join(DTYPES)}")

    def to_json(self) -> dict[str, Any]:
        """The request as a queue carries it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """A request that was carried.

        Raises:
            UsageError: If it is none of this release.
        """
        # JSON knows no tuples.
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise UsageError(f"this is no request of this release: {error}") from error


@dataclass(frozen=True, kw_only=True)
class IngestRequest(ModelRequest):
    """What to measure on a model."""

    suites: tuple[str, ...] = ()
    """Empty: all that can be measured on this model."""
    relations: str | None = None
    probe: str | None = None
    only: bool = False
    token_classes: tuple[str, ...] = ()
    """Classes of the user over tokens' texts, each NAME=REGEX."""
    first_mlp: bool = True
    if_possible: bool = False
    """What cannot be measured on this model is noted, and no error."""
    batch_share: float = 1.0
    """Of the usual sizes of batches, above 0; changes no score."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: If a suite, device or dtype is unknown, or `only` has nothing to be the
                only one.
            InputError: If a token class is badly declared.
        """
        super().__post_init__()
        classes.declared(self.token_classes)
        for suite in self.suites:
            if suite not in SUITE_NAMES:
                raise UsageError(f"no suite {suite!r}; there are {', '.join(SUITE_NAMES)}")
        if self.only and not (self.relations or self.probe):
            raise UsageError("--only needs --relations DIR or --probe FILE to be the only one")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of what is read besides the model."""
        return tuple(path for path in (self.relations, self.probe) if path)


@dataclass(frozen=True, kw_only=True)
class CaptureRequest(ModelRequest):
    """Which heads' patterns to store, on what."""

    heads: str
    """Such as `L5H5,L6H9`; `L5` is the whole layer."""
    prompts: tuple[str, ...] = ()
    """Texts, tokenized as the tokenizer does by default."""
    prompt_file: str | None = None
    """JSONL as `--probe` takes it; a line may have a `name`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: If there is no prompt, what should be heads is none, or a device or dtype
                is unknown.
        """
        super().__post_init__()
        patterns.places(self.heads)
        if not self.prompts and not self.prompt_file:
            raise UsageError("no prompt is given; expected --prompt TEXT or --prompt-file FILE")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of what is read besides the model."""
        return (self.prompt_file,) if self.prompt_file else ()


Request = IngestRequest | CaptureRequest
