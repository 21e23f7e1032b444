"""Records of the output topics as parts of a case: only what the reconciliation asks of them, and which case they belong to."""

from sys import intern
from typing import Final, TypeAlias

import msgspec

from app.contract import reasons
from app.contract.events import MAX_AMOUNT, Rejection, to_micros
from app.contract.journeys import JourneyRow, decode_journey
from app.contract.money import FIRST_DAY
from app.contract.rows import STATUSES, decode_attributed, decode_dead_letter
from app.desk.calendar import Calendar
from app.desk.cases import LATE, Claim, Paid, Part, Refused, Truth, refused_conversion
from app.desk.fold import Input
from app.desk.refusals import judge_row
from app.policy.model import DAY_MS, Policy

# (advertiser, order), or (advertiser, user, action, event) of a conversion without an order. No part holds its case: a million
# conversions are a gigabyte of them as it is.
Case: TypeAlias = tuple[str, ...]
NO_KEY: Final = Rejection(reasons.KEY_MISMATCH, "", "the record has no key, so it can never be corrected")
NO_DAY: Final = Rejection(reasons.INVALID_TIME, "event_time", "no day of the calendar")
_NO_AMOUNT: Final = Rejection(reasons.INVALID_FIELD, "value", f"no amount between 0 and {MAX_AMOUNT:g}")


def case_of(part: Part) -> Case:
    """The case that it is a part of."""
    if isinstance(part, Paid):
        return (part.order.advertiser_id, part.order.order_id)
    if part.order_id:
        return (part.advertiser_id, part.order_id)
    return (part.advertiser_id, part.user_id, part.conversion_name, part.event_id)


def case_of_order(key: bytes) -> Case | None:
    """The case of a key of `revenue.orders`; None where it is none."""
    try:
        found = msgspec.json.decode(key, type=tuple[str, str])
    except (msgspec.DecodeError, ValueError):
        return None
    return found


def time_of(part: Part) -> int:
    """When it happened, epoch ms; of a refused conversion the begin of its day."""
    if isinstance(part, Paid):
        return part.order.time_ms
    return (part.day - FIRST_DAY) * DAY_MS if isinstance(part, Refused) else part.time_ms


def claim_of(record: Input, calendar: Calendar) -> Claim | Rejection:
    """A row of `conversions.attributed`."""
    row = judge_row(decode_attributed, record.value)
    if isinstance(row, Rejection):
        return row
    day = calendar.day(row.advertiser_id, row.event_time)
    refusal = refusal_of(row.status, row.value, day)
    if refusal is not None or day is None:
        return refusal or NO_DAY
    return Claim(
        intern(row.advertiser_id),
        row.user_id,
        intern(row.conversion_name),
        row.event_id,
        row.order_id or "",
        intern(row.platform),
        intern(row.campaign_id or ""),
        row.event_time,
        day,
        intern(row.status),
        to_micros(row.value),
        intern(row.currency or ""),
    )


def truth_of(record: Input, calendar: Calendar, policy: Policy, max_touches: int) -> Truth | Rejection:
    """A row of `conversions.journeys`. `max_touches`: as many as the row has room for."""
    row = judge_row(decode_journey, record.value)
    if isinstance(row, Rejection):
        return row
    day = calendar.day(row.advertiser_id, row.event_time)
    refusal = refusal_of(row.status, row.value, day)
    if refusal is not None or day is None:
        return refusal or NO_DAY
    return Truth(
        intern(row.advertiser_id),
        row.user_id,
        intern(row.conversion_name),
        row.event_id,
        row.order_id or "",
        intern(row.credited.platform if row.credited else ""),
        intern((row.credited.campaign_id if row.credited else None) or ""),
        row.event_time,
        day,
        intern(row.status),
        to_micros(row.value),
        intern(row.currency or ""),
        intern(outside_window_of(row, policy, max_touches)),
    )


def outside_window_of(row: JourneyRow, policy: Policy, max_touches: int) -> str:
    """The platform that has a touch in the journey which is older than its window; "" where none is known.

    Of the touches that count for nobody the row names the first one only. It is one of them where the platform's method credits
    its kind then, and the row has no creditable touch of that platform: where it may have left one out, nothing is known.
    """
    first = row.first_touch
    rule = policy.at(row.event_time).platforms.get(first.platform) if first is not None else None
    if first is None or rule is None or first.touch_type not in rule.windows_ms or len(row.touches) >= max_touches:
        return ""
    return "" if any(touch.platform == first.platform for touch in row.touches) else first.platform


def refusal_of(status: str, value: float, day: int | None) -> Rejection | None:
    """Why a row of a conversion is none: its status, its value, or a time (whose day is None) that no calendar has."""
    if status not in STATUSES:
        return Rejection(reasons.INVALID_FIELD, "status", f"one of {', '.join(STATUSES)}")
    if not 0 <= value <= MAX_AMOUNT:
        return _NO_AMOUNT
    return NO_DAY if day is None else None


def refused_of(record: Input, calendar: Calendar) -> Refused | Rejection | None:
    """A letter of `ads.events.dlq`; None where no conversion can be read in it."""
    if record.value is None:
        return Rejection(reasons.NULL_RECORD, "", "a dead letter has a value")
    letter = judge_row(decode_dead_letter, record.value)
    if isinstance(letter, Rejection):
        return letter
    found = refused_conversion(letter)
    if found is None:
        return None
    event, time_ms = found
    day = calendar.day(event.advertiser_id, time_ms)
    if day is None:
        return None
    return Refused(
        intern(event.advertiser_id),
        event.user_id,
        intern(event.conversion_name),
        event.event_id,
        event.order_id or "",
        intern(event.platform or ""),
        day,
        letter.reason in LATE,
    )
