"""What schedules find on the Hub and refuse; a Hub that is slow, large or tired."""

import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import hub_api
import huggingface_hub.constants
import pytest
import scheduling
import tiny
from hub_api import Repository
from safetensors.torch import load_file
from scheduling import HOURLY, WEIGHTS, decisions, jobs, reasons, spec, tick

from catalog import Catalog
from catalog.errors import ModelError, UsageError
from catalog.jobs import JobStore, Schedules
from catalog.jobs.schedules import Decision, Kind
from ingest.schedules import add, hub, preview, ticking, watches
from ingest.schedules.hub import HubBusyError
from ingest.schedules.limits import Limits

to, store, now = scheduling.to, scheduling.store, scheduling.now

# --- asking the Hub ---


def test_a_long_list_comes_in_pages(the_hub: hub_api.Hub) -> None:
    for i in range(250):
        the_hub.repositories[f"lab/m{i:03}"] = Repository()
    the_hub.repositories["other/m"] = Repository()
    the_hub.link_host = "https://elsewhere.invalid"
    seen, rest = [], None
    while True:
        listing = hub.Hub().models(author="lab", rest=rest)
        seen += [model.id for model in listing.models]
        rest = listing.rest
        if rest is None:
            break
    assert seen == [f"lab/m{i:03}" for i in reversed(range(250))]
    assert len(the_hub.asked) == 3


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ((429, {"RateLimit": '"api";r=0;t=55'}), 55),
        ((429, {"Retry-After": "120"}), 120),
        ((429, {"RateLimit": '"api";r=7;t=55', "Retry-After": "9"}), 9),
        ((503, {}), None),
        ((500, {}), None),
        ((200, {}), None),  # a page of some gateway, and no JSON
    ],
)
def test_the_hub_is_busy(
    the_hub: hub_api.Hub, fault: tuple[int, dict[str, str]], seconds: float | None
) -> None:
    the_hub.faults = [fault]
    with pytest.raises(HubBusyError) as caught:
        hub.Hub().models(author="lab")
    assert caught.value.retry_after == seconds
    assert len(the_hub.asked) == 1


def test_a_date_to_come_back_at(the_hub: hub_api.Hub) -> None:
    at = datetime.now(UTC) + timedelta(minutes=10)
    the_hub.faults = [(503, {"Retry-After": format_datetime(at, usegmt=True)})]
    with pytest.raises(HubBusyError) as caught:
        hub.Hub().models(author="lab")
    assert caught.value.retry_after == pytest.approx(600, abs=5)


def test_a_hub_that_does_not_answer(the_hub: hub_api.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    the_hub.delay = 1.0
    with pytest.raises(HubBusyError, match="cannot be reached"):
        hub.Hub().model("lab/a")


def test_the_token_is_of_the_environment(
    the_hub: hub_api.Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that someone has left on the machine is not used; none is told to anybody."""
    left = tmp_path / "token"
    left.write_text("hf_leftbehind")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(left))
    the_hub.repositories["lab/a"] = Repository(params=None)
    limits = {"min_params": 1}
    asked = watches.Watch.of(Kind.MODEL, {"model": "lab/a", "revision": None}, limits, WEIGHTS)
    with caplog.at_level("DEBUG"):
        for token in (None, hub_api.TOKEN):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            (found,) = asked.look(None, None, datetime.now(UTC)).found  # type: ignore[arg-type]
            with pytest.raises(ModelError) as caught:
                found.require()
            assert hub_api.TOKEN not in repr(found) + str(caught.value)
    assert the_hub.tokens == {None, f"Bearer {hub_api.TOKEN}"}
    assert hub_api.TOKEN not in caplog.text


# --- limits ---

FITS = Repository(params=7_000_000, downloads=50, licence="apache-2.0")


@pytest.mark.parametrize(
    ("model", "limits", "told"),
    [
        (FITS, {}, None),
        (Repository(architecture="t5"), {}, "architecture 't5'"),
        (Repository(architecture=None), {}, "no config.json"),
        (Repository(files=["config.json", "pytorch_model.bin"]), {}, "pickled"),
        (Repository(files=["config.json", "model.gguf"]), {}, "no weights"),
        (Repository(disabled=True), {}, "disabled"),
        (Repository(gated="auto"), {}, "HF_TOKEN"),
        (FITS, {"min_params": 7_000_000, "max_params": 7_000_000}, None),
        (FITS, {"min_params": 7_000_001}, "7,000,000 parameters; at least"),
        (FITS, {"max_params": 6_999_999}, "7,000,000 parameters; at most"),
        (Repository(params=None), {"max_params": 10**9}, "how many parameters"),
        (FITS, {"min_downloads": 50}, None),
        (FITS, {"min_downloads": 51}, "50 downloads"),
        (FITS, {"licences": ["MIT", "Apache-2.0"]}, None),
        (FITS, {"licences": ["mit"]}, "its licence is apache-2.0"),
        (Repository(licence=None), {"licences": ["mit"]}, "no licence"),
        (FITS, {"architectures": ["gpt2", "llama"]}, None),
        (FITS, {"architectures": ["gpt2"]}, "it is llama, not gpt2"),
    ],
)
def test_limits(
    the_hub: hub_api.Hub,
    to: Catalog,
    store: JobStore,
    now: datetime,
    model: Repository,
    limits: dict[str, Any],
    told: str | None,
) -> None:
    the_hub.repositories["lab/m"] = model
    (decided,) = preview(to, spec(limits=limits), now, store)
    assert decided.decision is (Decision.REFUSED if told else Decision.SUBMITTED)
    assert told is None or told in (decided.reason or "")


def test_parameters_that_only_the_weights_know(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path / "m", "llama", seed=1)
    n = sum(weight.numel() for weight in load_file(folder / "model.safetensors").values())
    the_hub.repositories["lab/m"] = Repository(params=None, folder=folder)
    (fits,) = preview(to, spec(limits={"min_params": n, "max_params": n}), now, store)
    (small,) = preview(to, spec(limits={"min_params": n + 1}), now, store)
    assert (fits.decision, small.decision) == (Decision.SUBMITTED, Decision.REFUSED)
    assert f"{n:,} parameters" in (small.reason or "")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 5) + b"hello")
    (damaged,) = preview(to, spec(limits={"min_params": n}), now, store)
    assert "how many parameters" in (damaged.reason or "")


def test_gated_and_private_models(
    the_hub: hub_api.Hub,
    to: Catalog,
    store: JobStore,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    the_hub.repositories |= {
        "lab/open": Repository(),
        "lab/accepted": Repository(gated="auto"),
        "lab/refused": Repository(gated="manual", is_readable=False),
        "lab/private": Repository(private=True),
    }
    strange = decisions(preview(to, spec(), now, store))
    monkeypatch.setenv("HF_TOKEN", hub_api.TOKEN)
    known = preview(to, spec(), now, store)
    yes, no = Decision.SUBMITTED, Decision.REFUSED
    assert strange == {"lab/open": yes, "lab/accepted": no, "lab/refused": no}
    assert decisions(known) == {
        "lab/open": yes,
        "lab/accepted": yes,
        "lab/refused": no,
        "lab/private": yes,
    }
    assert "gated" in (reasons(known)["lab/refused"] or "")


def test_limits_that_no_model_meets() -> None:
    with pytest.raises(UsageError, match="rwkv is not supported"):
        Limits(architectures=("rwkv",))
    with pytest.raises(UsageError, match="no model"):
        Limits(min_params=2, max_params=1)


# --- a Hub that is slow, large or tired ---


def test_backing_off(the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime) -> None:
    """Longer each time, as long as the Hub asks at least, and as usual once it answers."""
    the_hub.repositories["lab/a"] = Repository()
    add(store, spec(), now)
    waits = []
    faults: list[hub_api.Headers] = [{}, {}, {}, {"Retry-After": "3000"}, {"Retry-After": "1"}]
    moment = now
    for headers in faults:
        the_hub.faults = [(429 if headers else 502, headers)]
        (ran,) = tick(store, to, moment)
        assert ran.result.startswith("error: the Hub answers")
        due = Schedules(store).get("s").next_run_at
        assert tick(store, to, due - timedelta(seconds=1)) == []
        waits.append((due - moment).total_seconds())
        moment = due
    assert waits == [30, 60, 120, 3000, 480]
    assert len(the_hub.asked) == len(faults)
    (ran,) = tick(store, to, moment)
    assert ran.result == "submitted 1, refused 0"
    assert Schedules(store).get("s").next_run_at == moment + HOURLY


def test_a_rate_limit_is_everybodys(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime, tmp_path: Path
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    the_hub.faults = [(429, {"RateLimit": '"api";r=0;t=240'})]
    add(store, spec("1"), now)
    add(store, spec("2"), now)
    add(store, spec("3", Kind.FOLDER, target={"folder": str(tmp_path)}), now)
    assert [ran.name for ran in tick(store, to, now)] == ["1", "3"]
    assert len(the_hub.asked) == 1
    after = now + timedelta(seconds=240)
    assert tick(store, to, after - timedelta(seconds=1)) == []
    assert [ran.name for ran in tick(store, to, after)] == ["1", "2"]


def test_a_huge_list_goes_on_in_later_ticks(
    the_hub: hub_api.Hub,
    to: Catalog,
    store: JobStore,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2,345 models: what one tick may ask is bounded, a failure in between loses nothing."""
    monkeypatch.setattr(ticking, "_SECONDS", 600.0)
    for i in range(2345):
        kind = "llama" if i % 100 == 0 else "t5"
        the_hub.repositories[f"lab/m{i:04}"] = Repository(architecture=kind)
    add(store, spec(limits={"at_most": 100}), now)
    (first,) = tick(store, to, now)
    assert first.result == "submitted 10, refused 990; the list goes on"
    assert len(the_hub.asked) == 10
    soon = now + timedelta(minutes=1)
    the_hub.faults = [(500, {})]
    (tired,) = tick(store, to, soon)
    assert tired.error is not None
    soon = Schedules(store).get("s").next_run_at
    (second,) = tick(store, to, soon)
    assert second.result == "submitted 10, refused 990; the list goes on"
    (third,) = tick(store, to, soon + timedelta(minutes=1))
    assert third.result == "submitted 4, refused 341"
    assert Schedules(store).get("s").rest is None
    assert len(the_hub.asked) == 25
    assert len({model for model, _ in jobs(store)}) == len(store.list()) == 24


def test_a_cursor_that_the_hub_has_forgotten(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    the_hub.repositories["lab/a"] = Repository()
    kept = Schedules(store)
    add(store, spec(), now)
    held = kept.claim("s", now)
    kept.finish(held, now=now, next_run_at=now, result="", rest="limit=100&cursor=!")
    (ran,) = tick(store, to, now)
    assert ran.result == "error: the Hub does not give the list of models: it answers 400"
    (ran,) = tick(store, to, now + HOURLY)
    assert ran.result == "submitted 1, refused 0"


def test_no_more_than_asked_in_one_run(
    the_hub: hub_api.Hub, to: Catalog, store: JobStore, now: datetime
) -> None:
    """What changed last comes first, also when older models still wait for their turn."""
    the_hub.repositories |= {f"lab/m{i}": Repository() for i in range(5)}
    add(store, spec(limits={"at_most": 2}), now)
    (ran,) = tick(store, to, now)
    assert ran.result == "submitted 2, refused 0, later 3"
    the_hub.repositories["lab/new"] = Repository()
    for hours in (1, 2, 3):
        tick(store, to, now + hours * HOURLY)
    assert [m for m, _ in jobs(store)] == [
        f"lab/{m}" for m in ("m4", "m3", "new", "m2", "m1", "m0")
    ]
