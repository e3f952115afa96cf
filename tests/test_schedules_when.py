"""Schedules: when they are due."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from scheduling import HOURLY

from catalog.errors import UsageError
from ingest.schedules import interval
from ingest.schedules.when import Timing


@pytest.mark.parametrize(
    ("cron", "start", "expected"),
    [
        # 02:30 does not exist on 29 March 2026 in Berlin, and exists twice on 25 October.
        ("30 2 * * *", "2026-03-28T12:00", ["03-29T01:00", "03-30T00:30"]),
        ("30 2 * * *", "2026-10-24T12:00", ["10-25T00:30", "10-26T01:30"]),
        ("30 2 * * *", "2026-10-25T01:15", ["10-26T01:30", "10-27T01:30"]),
        ("0 3 * * *", "2026-03-28T12:00", ["03-29T01:00", "03-30T01:00"]),
        ("0 3 * * *", "2026-10-24T12:00", ["10-25T02:00", "10-26T02:00"]),
        ("0 * * * *", "2026-10-24T23:30", ["10-25T00:00", "10-25T01:00", "10-25T02:00"]),
        ("*/30 * * * *", "2026-03-29T00:20", ["03-29T00:30", "03-29T01:00", "03-29T01:30"]),
        ("0 9 * * MON", "2026-10-23T12:00", ["10-26T08:00", "11-02T08:00"]),
    ],
)
def test_cron_follows_the_clock_on_the_wall(cron: str, start: str, expected: list[str]) -> None:
    timing = Timing(cron=cron, timezone="Europe/Berlin")
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    for one in expected:
        moment = timing.after(moment)
        assert moment == datetime.fromisoformat(f"2026-{one}").replace(tzinfo=UTC)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_cron_is_always_later(zone: str) -> None:
    """From every quarter of an hour around changes of the clock, a next time that is not past."""
    daily = Timing(cron="45 1 * * *", timezone=zone)
    for day in (datetime(2026, 3, 7), datetime(2026, 3, 28), datetime(2026, 4, 4)):  # noqa: DTZ001
        for quarter in range(4 * 72):
            moment = day.replace(tzinfo=UTC) + timedelta(minutes=15 * quarter)
            after = daily.after(moment)
            assert moment < after <= moment + timedelta(hours=26)
            assert daily.after(after) - after >= timedelta(hours=22)
    for quarter in range(4 * 72):
        moment = datetime(2026, 10, 24, tzinfo=UTC) + timedelta(minutes=15 * quarter)
        local = daily.after(moment).astimezone(ZoneInfo(zone))
        assert daily.after(moment) > moment
        assert (local.hour, local.minute) == (1, 45)


def test_intervals() -> None:
    assert interval("30m") == timedelta(minutes=30)
    assert interval("2w") == timedelta(weeks=2)
    timing = Timing(every=interval("6h"))
    due = datetime(2026, 1, 1, tzinfo=UTC)
    assert timing.after(due, due) == due + timedelta(hours=6)
    assert timing.after(due + timedelta(hours=20), due) == due + timedelta(hours=24)
    assert timing.after(due + timedelta(hours=6), due) == due + timedelta(hours=12)


@pytest.mark.parametrize("text", ["", "6", "h", "0h", "-1h", "6 hours", "1.5h"])
def test_bad_intervals(text: str) -> None:
    with pytest.raises(UsageError, match="--every"):
        interval(text)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"cron": "61 * * * *"}, "bad minute"),
        ({"cron": "0 0 30 2 *"}, "--cron"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 0 0 * * *"}, "five fields"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"cron": "0 3 * * *", "timezone": "../../etc/passwd"}, "--timezone"),
        ({"cron": "0 3 * * *", "every": HOURLY}, "either"),
        ({}, "either"),
    ],
)
def test_bad_times(facts: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Timing(**facts)
