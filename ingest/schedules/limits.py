"""Which models of the Hub a schedule may ingest, and why not the others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import ModelInfo

from catalog.errors import ModelError, UsageError
from ingest.readers.architectures import LAYOUTS, SUPPORTED, layout
from ingest.readers.source import require_safetensors
from ingest.schedules.hub import Hub

_LICENCE = "license:"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model must be like; that its architecture is supported is required in any case."""

    min_params: int | None = None
    max_params: int | None = None
    min_downloads: int | None = None
    """Of the last 30 days, as the Hub counts them."""
    licences: tuple[str, ...] = ()
    """The Hub's identifiers, such as apache-2.0; empty: any."""
    architectures: tuple[str, ...] = ()
    """Empty: all that are supported."""
    at_most: int = 10
    """Models that one run submits."""

    def __post_init__(self) -> None:
        """Refuse what no model can meet.

        Raises:
            UsageError: If an architecture is not supported, or the range of parameters is empty.
        """
        for architecture in self.architectures:
            if architecture not in LAYOUTS:
                raise UsageError(
                    f"--architecture {architecture} is not supported; supported are {SUPPORTED}"
                )
        if None not in (low := self.min_params, high := self.max_params) and low > high:  # type: ignore[operator]
            raise UsageError(f"no model has {low} parameters at least and {high} at most")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Limits":
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
        }
        return cls(**fields)


def require(hub: Hub, model: ModelInfo, limits: Limits, *, allow_pickle: bool) -> None:
    """Refuse a model that a schedule may not, or cannot, ingest; what is free to know comes first.

    Raises:
        ModelError: With the reason.
        HubBusyError: If the Hub had to be asked, and did not answer.
    """
    if model.disabled:
        raise ModelError("the Hub has disabled it")
    _require_architecture(model, limits)
    if model.siblings is not None:
        files = [file.rfilename for file in model.siblings]
        require_safetensors(model.id, files, allow_pickle=allow_pickle)
    _require_licence(model, limits)
    downloads = model.downloads or 0
    if limits.min_downloads is not None and downloads < limits.min_downloads:
        raise ModelError(f"{downloads} downloads in 30 days; at least {limits.min_downloads} asked")
    if (limits.min_params, limits.max_params) != (None, None):
        _require_size(hub, model, limits)
    if model.gated:
        if not hub.has_token:
            raise ModelError("it is gated: accept its terms on the Hub, and set HF_TOKEN")
        hub.require_access(model.id)


def _require_architecture(model: ModelInfo, limits: Limits) -> None:
    architecture = (model.config or {}).get("model_type")
    if not architecture:
        raise ModelError("the Hub knows no architecture of it: it has no config.json that says one")
    layout(architecture, model.id)
    if limits.architectures and architecture not in limits.architectures:
        raise ModelError(f"it is {architecture}, not {' or '.join(limits.architectures)}")


def _require_licence(model: ModelInfo, limits: Limits) -> None:
    if not limits.licences:
        return
    named = [tag.removeprefix(_LICENCE) for tag in model.tags or () if tag.startswith(_LICENCE)]
    if not {name.lower() for name in named} & {name.lower() for name in limits.licences}:
        has = f"its licence is {' and '.join(named)}" if named else "it names no licence"
        raise ModelError(f"{has}, not {' or '.join(limits.licences)}")


def _require_size(hub: Hub, model: ModelInfo, limits: Limits) -> None:
    n = model.safetensors.total if model.safetensors else hub.n_params(model)
    if n is None:
        raise ModelError("nobody says how many parameters it has")
    if limits.min_params is not None and n < limits.min_params:
        raise ModelError(f"{n:,} parameters; at least {limits.min_params:,} asked")
    if limits.max_params is not None and n > limits.max_params:
        raise ModelError(f"{n:,} parameters; at most {limits.max_params:,} asked")
