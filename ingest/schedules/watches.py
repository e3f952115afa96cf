"""What each kind of schedule finds when it looks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelInfo

from catalog import Catalog, queries
from catalog.errors import ModelError
from catalog.jobs.schedules import Kind
from catalog.sources import Checkpoint, checkpoint
from ingest.probes import relations, shipped
from ingest.request import IngestRequest
from ingest.schedules import folders, limits
from ingest.schedules.hub import Hub
from ingest.schedules.limits import Limits

_OF_A_COLLECTION = 10
"""Models that are asked for one by one before what was found is written down."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something that could be ingested."""

    item: str
    revision: str
    """Another one than before means that it is new."""
    request: IngestRequest
    require: Callable[[], None]
    """Raises ModelError with the reason if it is not to be ingested; may ask the Hub."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of what there is; `rest` is where the others begin, None at the end."""

    found: Sequence[Found]
    rest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a schedule says, ready to be acted on."""

    kind: Kind
    target: Mapping[str, Any]
    limits: Limits
    request: Mapping[str, Any]
    """Fields of `IngestRequest` but for the model, its name and revision."""

    @classmethod
    def of(
        cls,
        kind: str,
        target: Mapping[str, Any],
        limits: Mapping[str, Any],
        request: Mapping[str, Any],
    ) -> "Watch":
        """From what is stored.

        Raises:
            UsageError: If it is nothing that could be meant.
        """
        watch = cls(
            kind=Kind(kind), target=target, limits=Limits.from_json(limits), request=request
        )
        watch.asks("any")
        return watch

    def asks(self, model: str, **more: Any) -> IngestRequest:
        return IngestRequest.from_json({"model": model, **self.request, **more})

    @property
    def allow_pickle(self) -> bool:
        return bool(self.request.get("allow_pickle"))

    def look(self, catalog: Catalog, rest: str | None, now: datetime) -> Page:
        """What there is, from `rest` of an earlier page on.

        Raises:
            ModelError: If the target itself is not there.
            HubBusyError: If the Hub does not answer now.
        """
        match self.kind:
            case Kind.MODEL:
                return self._model(now)
            case Kind.HUB:
                hub = Hub()
                listing = hub.models(**self.target, rest=rest)
                return Page(found=[self._of_hub(hub, m) for m in listing.models], rest=listing.rest)
            case Kind.COLLECTION:
                return self._collection(int(rest or 0))
            case Kind.FOLDER:
                folder = Path(self.target["folder"])
                return Page(
                    found=[self._of_folder(path, folder, now) for path in folders.models(folder)]
                )
            case Kind.STALE:
                return Page(found=self._stale(catalog))

    def _model(self, now: datetime) -> Page:
        name, revision = self.target["model"], self.target["revision"]
        path = Path(name)
        if path.exists():
            return Page(found=[self._of_folder(path, path.parent, now)])
        hub = Hub()
        found = self._of_hub(hub, hub.model(name, revision))
        if revision is None:
            return Page(found=[found])
        named = replace(found.request, name=f"{name}@{revision}")
        return Page(found=[replace(found, item=f"{name}@{revision}", request=named)])

    def _of_hub(self, hub: Hub, model: ModelInfo) -> Found:
        # The commit is part of the request: a job for this one is no job for the next.
        return Found(
            item=model.id,
            revision=model.sha or "",
            request=self.asks(model.id, name=model.id, revision=model.sha),
            require=partial(
                limits.require, hub, model, self.limits, allow_pickle=self.allow_pickle
            ),
        )

    def _collection(self, start: int) -> Page:
        hub = Hub()
        names = hub.collection(self.target["collection"])
        end = start + _OF_A_COLLECTION
        return Page(
            found=[self._by_name(hub, name) for name in names[start:end]],
            rest=str(end) if end < len(names) else None,
        )

    def _by_name(self, hub: Hub, name: str) -> Found:
        try:
            return self._of_hub(hub, hub.model(name))
        except ModelError as error:
            return Found(
                item=name, revision="", request=self.asks(name), require=partial(_refuse, error)
            )

    def _of_folder(self, path: Path, within: Path, now: datetime) -> Found:
        try:
            fingerprint = folders.fingerprint(path)
        except OSError:
            fingerprint = ""  # what is wrong with it is said below
        return Found(
            item=str(path),
            revision=fingerprint,
            request=self.asks(str(path)),
            require=partial(folders.require, path, within, now, allow_pickle=self.allow_pickle),
        )

    def _stale(self, catalog: Catalog) -> list[Found]:
        from ingest.metrics import VERSIONS  # noqa: PLC0415 - brings torch

        facts: dict[tuple[str, str, str | None], Mapping[str, Any]] = {}
        risen: dict[tuple[str, str, str | None], dict[str, int]] = {}
        runs = queries.published_versions(catalog).rows() if catalog.database.exists else []
        for run in runs:
            own = _own(run["suite"], run["probe"])
            if self.request.get("suites") and run["suite"] not in self.request["suites"]:
                continue
            if self.request.get("only") and own is None:
                continue
            measured = json.loads(run["versions"]).get("metrics", {})
            newer = {
                name: VERSIONS[name]
                for name, version in measured.items()
                if VERSIONS.get(name, version) > version
            }
            if newer:
                key = run["model"], run["suite"], own
                facts[key] = run
                risen.setdefault(key, {}).update(newer)
        return [self._of_catalog(run, key[2], risen[key]) for key, run in facts.items()]

    def _of_catalog(
        self, run: Mapping[str, Any], own: str | None, newer: Mapping[str, int]
    ) -> Found:
        """What is measured again as it was measured.

        Args:
            run: Of `queries.published_versions`.
            own: The name of the user's relations or probe; None: of those that are shipped.
            newer: Versions by metric.
        """
        source = checkpoint(run["source"], run["revision"])
        inputs = self._inputs(run["suite"], own)
        return Found(
            item=f"{run['model']} {run['suite']}" + (f" on {own}" if own else ""),
            revision=", ".join(f"{name} {version}" for name, version in sorted(newer.items())),
            request=self.asks(
                source.model if source else run["model"],
                name=run["model"],
                revision=source and source.revision,
                suites=(run["suite"],),
                dtype=self.request.get("dtype", run["dtype"]),
                first_mlp=json.loads(run["params"]).get("first_mlp", True),
                only=any(inputs.values()),
                **inputs,
            ),
            require=partial(_require_source, source, None if any(inputs.values()) else own),
        )

    def _inputs(self, suite: str, own: str | None) -> dict[str, str | None]:
        """The schedule's relations or probe if they are those of this name, and no others."""
        inputs: dict[str, str | None] = {"relations": None, "probe": None}
        kind = "probe" if suite == "patterns" else "relations"
        given = self.request.get(kind)
        if given and own == (Path(given).stem if kind == "probe" else Path(given).name):
            inputs[kind] = given
        return inputs


_SHIPPED = {
    "relations": {relations.SHIPPED},
    "dynamic": {relations.SHIPPED},
    "patterns": set(shipped.NAMES),
}
"""Suites that users give inputs to, and the names of those that come with the project."""


def _own(suite: str, probe: str) -> str | None:
    """The user's name of a probe, or of the relations in its prompts; None where it is shipped."""
    name = probe.partition(":")[0]
    return None if name in _SHIPPED.get(suite, {name}) else name


def _refuse(error: ModelError) -> None:
    raise error


def _require_source(source: Checkpoint | None, lacking: str | None) -> None:
    """Refuse a model whose files, or inputs, are not to be found where they were."""
    if lacking is not None:
        raise ModelError(
            f"it was measured on {lacking}, which the catalog names and does not hold: give a "
            "schedule its --relations or --probe"
        )
    if source is None:
        raise ModelError("the catalog does not say where it came from")
    path = Path(source.model)
    if path.is_absolute() and not path.exists():
        raise ModelError(f"its files are no longer at {path}, on this machine")
