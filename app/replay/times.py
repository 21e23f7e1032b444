"""How times are told."""

from datetime import UTC, datetime

from app.policy.model import DAY_MS

_HOUR_MS = DAY_MS // 24


def as_time(time_ms: int) -> str:
    """RFC 3339, UTC; without a fraction where there is none."""
    timespec = "milliseconds" if time_ms % 1000 else "seconds"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def as_duration(span_ms: int) -> str:
    """In days, or in hours where it is less than one."""
    return f"{span_ms / DAY_MS:.1f} days" if span_ms >= DAY_MS else f"{span_ms / _HOUR_MS:.1f} hours"
