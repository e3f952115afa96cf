"""Schedules that watch a folder: models that appear in it, whole."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import scheduling
import tiny
from safetensors.torch import load_file, save_file
from scheduling import (
    decisions,
    finish,
    jobs,
    spec,
    submit,
    tick,
)

from catalog import Catalog
from catalog.jobs import JobStore
from catalog.jobs.schedules import Decision, Kind
from ingest.schedules import add, folders, run_now

to, store, now = scheduling.to, scheduling.store, scheduling.now


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def watching(
    inbox: Path, to: Catalog, store: JobStore, now: datetime
) -> Callable[[int], dict[str, tuple[Decision, str | None]]]:
    """Looks some minutes from now; what was decided, by name."""
    add(store, spec("inbox", Kind.FOLDER, target={"folder": str(inbox)}), now)

    def look(minutes: int) -> dict[str, tuple[Decision, str | None]]:
        real = datetime.now(UTC) + timedelta(minutes=minutes)
        ran = run_now(store, to, "inbox", real, submit)
        assert ran.error is None, ran.result
        return {Path(one.item).name: (one.decision, one.reason) for one in ran.decided}

    return look


Looks = Callable[[int], dict[str, tuple[Decision, str | None]]]


def test_a_folder(inbox: Path, watching: Looks, store: JobStore) -> None:
    assert watching(0) == {}
    whole = tiny.save(inbox / "whole", "gpt2", seed=1)
    (inbox / "notes.txt").write_text("no model")
    (inbox / ".hidden").mkdir()
    decision, reason = watching(0)["whole"]
    assert decision is Decision.LATER
    assert "left alone for 60 s" in (reason or "")
    assert watching(2) == {"whole": (Decision.SUBMITTED, None)}
    assert watching(3) == {}
    # The same job is still queued when the contents change: it may have read the old ones.
    weights = load_file(whole / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, whole / "model.safetensors", {"format": "pt"})
    assert watching(4) == {"whole": (Decision.LATER, "a job for it is under way")}
    finish(store, store.list()[0])
    assert watching(5) == {"whole": (Decision.SUBMITTED, None)}
    assert jobs(store) == [(str(whole), None)] * 2


def test_half_copied(inbox: Path, watching: Looks, smollm2: Path) -> None:
    """Nothing is moving any more, as when a cable was pulled; copied times say years ago."""
    done = tiny.save(inbox / "cut", "llama", seed=1)
    content = (done / "model.safetensors").read_bytes()
    (done / "model.safetensors").write_bytes(content[: len(content) // 2])
    begun = tiny.save(inbox / "begun", "llama", seed=1)
    (begun / "model.safetensors").unlink()
    shard = tiny.save(inbox / "shards", "llama", seed=1)
    (shard / "model.safetensors").rename(shard / "model-00001-of-00002.safetensors")
    partly = tiny.save(inbox / "partly", "llama", seed=1)
    (partly / "model.safetensors.part").write_bytes(b"")
    with smollm2.open("rb") as file:
        (inbox / "cut.gguf").write_bytes(file.read(40_000_000))
    (inbox / "one-00001-of-00002.gguf").write_bytes(b"GGUF")
    for path in (*done.iterdir(), inbox / "cut.gguf"):
        os.utime(path, (1e9, 1e9))
    fresh = watching(0)
    assert {decision for decision, _ in fresh.values()} == {Decision.LATER}
    told = watching(2)
    assert told["cut"][0] is told["cut.gguf"][0] is told["begun"][0] is Decision.REFUSED
    assert "damaged" in (told["cut"][1] or "")
    assert "damaged" in (told["cut.gguf"][1] or "")
    assert "no weights" in (told["begun"][1] or "")
    assert "in parts" in (told["shards"][1] or "")
    assert "model.safetensors.part" in (told["partly"][1] or "")
    assert "split GGUF" in (told["one-00001-of-00002.gguf"][1] or "")
    (done / "model.safetensors").write_bytes(content)
    assert watching(2)["cut"] == (Decision.SUBMITTED, None)


def test_folders_that_hold_something_else(
    inbox: Path, watching: Looks, tmp_path: Path, smollm2: Path
) -> None:
    outside = tiny.save(tmp_path / "outside", "llama", seed=1)
    (inbox / "link").symlink_to(outside)
    (inbox / "dangling.gguf").symlink_to(tmp_path / "nowhere.gguf")
    t5 = inbox / "t5"
    t5.mkdir()
    (t5 / "config.json").write_text(json.dumps({"model_type": "t5"}))
    save_file(load_file(outside / "model.safetensors"), t5 / "model.safetensors", {"format": "pt"})
    (inbox / "photos").mkdir()
    (inbox / "real.gguf").hardlink_to(smollm2) if _same_device(smollm2, inbox) else (
        inbox / "real.gguf"
    ).write_bytes(smollm2.read_bytes())
    told = watching(2)
    assert told["real.gguf"] == (Decision.SUBMITTED, None)
    assert "out of the watched folder" in (told["link"][1] or "")
    assert told["dangling.gguf"][0] is Decision.REFUSED
    assert "'t5', which is not supported" in (told["t5"][1] or "")
    assert "no config.json" in (told["photos"][1] or "")


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def test_a_local_model(to: Catalog, store: JobStore, now: datetime, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m", "llama", seed=1)
    add(store, spec(kind=Kind.MODEL, target={"model": str(folder), "revision": None}), now)
    later = datetime.now(UTC) + timedelta(minutes=5)
    (ran,) = tick(store, to, later)
    assert decisions(ran.decided) == {str(folder): Decision.SUBMITTED}
    assert folders.fingerprint(folder) == ran.decided[0].revision
