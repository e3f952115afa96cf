"""When a schedule is due: a cron expression in a time zone, or an interval."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from catalog.errors import UsageError
from catalog.jobs.listing import span

_CRON_FIELDS = 5


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Either a cron expression with its time zone, or an interval."""

    cron: str | None = None
    timezone: str = "UTC"
    every: timedelta | None = None

    def __post_init__(self) -> None:
        """Refuse what is never due.

        Raises:
            UsageError: If the expression or the zone is unknown, or not exactly one is given.
        """
        if (self.cron is None) == (self.every is None):
            raise UsageError("give either --every, such as 6h, or --cron, such as '0 3 * * *'")
        if self.cron is not None:
            self.after(datetime.now(UTC))

    def after(self, moment: datetime, due: datetime | None = None) -> datetime:
        """The next time after a moment, UTC; what has been missed until then is not made up for.

        A cron expression follows the clock on the wall as Debian's cron does: what falls into the
        hour that summer time leaves out is due when that hour is left out, and what falls into the
        hour that comes twice is due once. Expressions of every hour or minute follow real time.

        Args:
            moment: With time zone.
            due: When an interval was due before: the next is a whole number of intervals later.
        """
        if self.every is not None:
            start = due or moment
            return start + self.every * max(1, (moment - start) // self.every + 1)
        assert self.cron is not None  # noqa: S101 - narrows the type
        if len(self.cron.split()) != _CRON_FIELDS:
            raise UsageError(
                f"--cron {self.cron!r}: expected five fields (minute, hour, day, month, weekday), "
                "such as '0 3 * * *'"
            )
        zone = _zone(self.timezone)
        try:
            times = (t.astimezone(UTC) for t in CronSim(self.cron, moment.astimezone(zone)))
            # In the hour that comes twice, CronSim takes the second for the first.
            return next(time for time in times if time > moment)
        except CronSimError as error:
            raise UsageError(f"--cron {self.cron!r}: {str(error).lower()}") from None
        except StopIteration:
            raise UsageError(f"--cron {self.cron!r} is due on no day") from None


def interval(text: str) -> timedelta:
    """A number of minutes, hours, days or weeks: `30m`, `6h`, `1d`, `2w`.

    Raises:
        UsageError: If the text is nothing of that kind.
    """
    return span(text, "--every")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise UsageError(
            f"--timezone {name!r} is unknown; expected such as Europe/Berlin"
        ) from None
