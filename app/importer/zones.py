"""Time zones as files and people write them: names of the IANA data base, UTC, and offsets with or without a colon."""

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

_OFFSET: Final = re.compile(r"([+-])(\d{2}):?(\d{2})")
_UTC: Final = ("UTC", "GMT", "Z")
_AT_THE_END: Final = re.compile(r"(?P<time>.*\S)\s+(?P<zone>[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+|UTC|GMT)")


@lru_cache(maxsize=64)
def parse_zone(name: str) -> tzinfo:
    """The zone of a text such as Asia/Shanghai, UTC, +08:00 or -0500. ValueError, in words for a person, for any other."""
    offset = _OFFSET.fullmatch(name)
    if offset is not None:
        sign = -1 if offset[1] == "-" else 1
        return timezone(sign * timedelta(hours=int(offset[2]), minutes=int(offset[3])))
    if name in _UTC:
        return UTC
    try:
        zone = ZoneInfo(name)
        datetime.now(zone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is no time zone that this machine knows; write UTC, +08:00 or a name such as Asia/Shanghai"
        ) from error
    return zone


def split_zone(text: str) -> tuple[str, tzinfo | None]:
    """A time and the zone whose name stands behind it, as in `2026-11-26 13:00:00 America/Los_Angeles`; None where there is
    none. ValueError for a name that is none.
    """
    match = _AT_THE_END.fullmatch(text)
    return (match["time"], parse_zone(match["zone"])) if match else (text, None)
