"""How times are told."""

from datetime import UTC, datetime


def as_time(time_ms: int) -> str:
    """RFC 3339, UTC; without a fraction where there is none."""
    timespec = "milliseconds" if time_ms % 1000 else "seconds"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
