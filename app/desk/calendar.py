"""Days and ISO weeks as an advertiser's books have them: in its own time zone, whatever its clocks do in spring and autumn."""

from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from app.contract.money import FIRST_DAY, LAST_DAY
from app.policy.desk import Desk

WEEK_DAYS: Final = 7


class Calendar:
    """The days of each advertiser's time zone. A day is a `date`'s ordinal."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._zones: dict[str, ZoneInfo] = {}

    def zone(self, advertiser_id: str) -> ZoneInfo:
        """Where its days begin."""
        found = self._zones.get(advertiser_id)
        if found is None:
            found = self._zones[advertiser_id] = self._desk.zone(advertiser_id)
        return found

    def day(self, advertiser_id: str, time_ms: int) -> int | None:
        """The day of a moment (epoch ms); None for one that no calendar here has."""
        try:
            found = datetime.fromtimestamp(time_ms // 1000, self.zone(advertiser_id)).toordinal()
        except (ValueError, OverflowError, OSError):
            return None
        return found if FIRST_DAY <= found <= LAST_DAY else None


def monday(day: int) -> int:
    """The first day of the ISO week that the day is in."""
    return day - (day - 1) % WEEK_DAYS


def week_name(day: int) -> str:
    """The ISO week of a day, such as 2026-W47. Around New Year it may be of another year than the day."""
    year, week, _ = date.fromordinal(day).isocalendar()
    return f"{year}-W{week:02d}"


def day_name(day: int) -> str:
    """The day as ISO 8601 writes it."""
    return date.fromordinal(day).isoformat()
