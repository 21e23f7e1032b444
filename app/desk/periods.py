"""Hours, days and ISO weeks: which of them a moment is in, and when they begin and end."""

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from app.contract.rollups import DAY, HOUR, WEEK

HOUR_MS: Final = 3_600_000
LONGEST_MS: Final = 8 * 24 * HOUR_MS  # a week, an hour more where clocks change, and room
_QUARTER_MS: Final = 900_000  # no zone's day begins but at a quarter of an hour
_REMEMBERED: Final = 20_000  # quarters of hours, by zone: 70 days of three zones


class Period(NamedTuple):
    """One hour, day or week; `end_ms` is exclusive, both are epoch ms."""

    kind: str
    label: str
    start_ms: int
    end_ms: int
    zone: str


def periods_of(time_ms: int, zone: str) -> tuple[Period, Period, Period]:
    """The hour (UTC), the day and the ISO week (of the zone) that a moment is in. Raises ValueError for one that no calendar
    has.
    """
    return _periods_of(time_ms - time_ms % _QUARTER_MS, zone)


@lru_cache(maxsize=_REMEMBERED)
def _periods_of(time_ms: int, zone: str) -> tuple[Period, Period, Period]:
    try:
        hour_ms = time_ms - time_ms % HOUR_MS
        hour = datetime.fromtimestamp(hour_ms / 1000, ZoneInfo("UTC"))
        day = datetime.fromtimestamp(time_ms / 1000, ZoneInfo(zone)).date()
        monday = day - timedelta(days=day.weekday())
        year, week, _ = day.isocalendar()
        return (
            Period(HOUR, f"{hour:%Y-%m-%dT%H}Z", hour_ms, hour_ms + HOUR_MS, "UTC"),
            _days(DAY, day.isoformat(), day, 1, zone),
            _days(WEEK, f"{year}-W{week:02d}", monday, 7, zone),
        )
    except (OverflowError, OSError) as error:
        raise ValueError(f"{time_ms} is no time: {error}") from error


def _days(kind: str, label: str, first: date, days: int, zone: str) -> Period:
    return Period(kind, label, _begins_ms(first, zone), _begins_ms(first + timedelta(days=days), zone), zone)


def _begins_ms(day: date, zone: str) -> int:
    """The day's first moment there; where clocks skip midnight, the moment at which they do."""
    return round(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()) * 1000
