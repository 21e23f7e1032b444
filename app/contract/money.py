"""Money: what the desk is told of it (`revenue.orders`, `platforms.reported`, `spend`), and what it makes of it
(`conversions.reconciliation`, `conversions.return`).

Keys are JSON arrays, amounts numbers in the unit of their currency, days those of the advertiser's time zone. Every input is
an upsert: the last record of a key holds, a null value deletes, and a refused record takes the place of what its key held,
as it does in Kafka's compaction.
"""

import re
from collections.abc import Callable
from datetime import date
from typing import Annotated, Final, NamedTuple

import msgspec

from app.contract import reasons
from app.contract.events import Amount, Id, Rejection, Struct, judge_bytes, parse_time_ms, to_micros

# The levels of a row of returns. A campaign is one of its platform.
TOTAL: Final = "total"
PLATFORM: Final = "platform"
CAMPAIGN: Final = "campaign"
SOURCE: Final = "source"
LEVELS: Final = (TOTAL, PLATFORM, SOURCE, CAMPAIGN, "creative", "landing_page", "offer")
TO_DATE: Final = "to_date"

# The days of the years that a week around them stays within what a date can be.
FIRST_DAY: Final = date(1970, 1, 1).toordinal()
LAST_DAY: Final = date(9998, 12, 31).toordinal()

Currency = Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
Day = Annotated[str, msgspec.Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class OrderEvent(msgspec.Struct, frozen=True, gc=False):
    """One order as the till or the shop's books have it now (topic `revenue.orders`, an upsert by `order_key`).

    Send it whole again whenever it changes: a refund is the same order with `refunded` raised. Fields that are not named
    here are ignored.
    """

    advertiser_id: Id
    order_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    time: int | str
    paid: Amount
    currency: Currency
    refunded: Amount = 0.0
    user_id: Id | None = None


class ReportEvent(msgspec.Struct, frozen=True, gc=False):
    """What a platform claims for one campaign and day (topic `platforms.reported`, an upsert by `report_key`).

    Fields that are not named here are ignored.
    """

    advertiser_id: Id
    platform: Id
    day: Day
    conversions: Amount
    campaign_id: Id | None = None
    conversion_name: Id | None = None
    value: Amount | None = None
    currency: Currency | None = None


class SpendEvent(msgspec.Struct, frozen=True, gc=False):
    """What one campaign cost on one day (topic `spend`, an upsert by `spend_key`). Fields that are not named here are ignored."""

    advertiser_id: Id
    platform: Id
    day: Day
    amount: Amount
    currency: Currency
    campaign_id: Id | None = None
    source: Id | None = None


class Order(NamedTuple):
    """An order that keeps the contract; time in epoch ms, amounts in millionths."""

    advertiser_id: str
    order_id: str
    user_id: str | None
    time_ms: int
    currency: str
    paid: int
    refunded: int


class Report(NamedTuple):
    """A platform's claim that keeps the contract; `day` is a `date`'s ordinal, `conversions` and `value` are in millionths."""

    advertiser_id: str
    platform: str
    campaign_id: str
    day: int
    conversion_name: str | None
    conversions: int
    value: int | None
    currency: str


class Spend(NamedTuple):
    """A day's spend that keeps the contract; `day` is a `date`'s ordinal, `amount` is in millionths."""

    advertiser_id: str
    platform: str
    campaign_id: str | None
    source: str | None
    day: int
    amount: int
    currency: str


class ReconciledMoney(msgspec.Struct, frozen=True, gc=False):
    """A reconciliation's amounts in one currency."""

    currency: str
    reported: float | None
    counted: float
    compared: float
    difference: float | None
    ratio: float | None
    deduplicated: float
    paid: float
    refunded: float
    net: float
    orders_without_conversion: float
    without_order: float


class ReconciliationRow(msgspec.Struct, frozen=True, gc=False):
    """What a platform claims, what is counted for it, and what was paid, of one week or to date (topic
    `conversions.reconciliation`, an upsert by `reconciliation_key`; a null value deletes).

    A function of what the input topics hold, so it carries no revision; any later correction corrects the row.
    """

    advertiser_id: str
    period: str
    scope: str
    platform: str
    campaign_id: str | None
    from_day: str
    to_day: str
    time_zone: str
    counted: int
    deduplicated: int
    reported_from: str | None
    reported_to: str | None
    complete: bool
    reported: float | None
    compared: int
    difference: float | None
    ratio: float | None
    tolerance: float | None
    within_tolerance: bool | None
    duplicates: int
    outside_window: int
    unattributed: int
    uncounted: int
    retracted: int
    late: int
    refused: int
    noise: float
    unexplained: float | None
    orders: int
    orders_refunded: int
    orders_without_conversion: int
    without_order: int
    without_order_id: int
    counted_refunded: int
    money: list[ReconciledMoney]


class ReturnMoney(msgspec.Struct, frozen=True, gc=False):
    """A return's amounts in one currency."""

    currency: str
    cost: float
    spend: float
    value: float
    new_value: float
    cost_per_conversion: float | None
    cost_per_lead: float | None
    cost_per_new_customer: float | None
    roas: float | None
    share_of_cost: float | None


class ReturnRow(msgspec.Struct, frozen=True, gc=False):
    """What came back for what was spent, of one value of one level and a day, week or to date (topic `conversions.return`, an
    upsert by `return_key`; a null value deletes).

    Each conversion is counted once, over all platforms, for the touch that `conversions.journeys` credits.
    """

    advertiser_id: str
    period: str
    level: str
    platform: str | None
    value: str | None
    from_day: str
    to_day: str
    time_zone: str
    views: int
    clicks: int
    conversions: int
    micro: int
    macro: int
    leads: int
    new_customers: int
    returning_orders: int
    micro_users: int
    micro_to_macro_users: int
    micro_to_macro: float | None
    share_of_leads: float | None
    share_of_new_customers: float | None
    money: list[ReturnMoney]


_encode: Final = msgspec.json.Encoder().encode  # orjson's bytes keep 4 KiB each, and the desk holds keys
_decode_order = msgspec.json.Decoder(OrderEvent).decode
_decode_report = msgspec.json.Decoder(ReportEvent).decode
_decode_spend = msgspec.json.Decoder(SpendEvent).decode
decode_reconciliation = msgspec.json.Decoder(ReconciliationRow).decode
decode_return = msgspec.json.Decoder(ReturnRow).decode


def order_key(advertiser_id: str, order_id: str) -> bytes:
    """The Kafka key of an `OrderEvent`."""
    return _encode([advertiser_id, order_id])


def report_key(
    advertiser_id: str, platform: str, campaign_id: str | None, conversion_name: str | None, day: str
) -> bytes:
    """The Kafka key of a `ReportEvent`."""
    return _encode([advertiser_id, platform, campaign_id, conversion_name, day])


def spend_key(advertiser_id: str, platform: str, campaign_id: str | None, source: str | None, day: str) -> bytes:
    """The Kafka key of a `SpendEvent`."""
    return _encode([advertiser_id, platform, campaign_id, source, day])


def reconciliation_key(advertiser_id: str, period: str, platform: str, campaign_id: str | None) -> bytes:
    """The Kafka key of a `ReconciliationRow`."""
    return _encode([advertiser_id, period, platform, campaign_id])


def return_key(advertiser_id: str, period: str, level: str, platform: str | None, value: str | None) -> bytes:
    """The Kafka key of a `ReturnRow`."""
    return _encode([advertiser_id, period, level, platform, value])


def judge_order(key: bytes | None, value: bytes | None) -> Order | Rejection:
    """The whole contract for one record of `revenue.orders`."""
    event = _judged(_decode_order, ("advertiser_id", "order_id", "user_id"), value)
    if isinstance(event, Rejection):
        return event
    time_ms = parse_time_ms(event.time)
    if time_ms is None:
        return Rejection(reasons.INVALID_TIME, "time", "neither epoch milliseconds nor RFC 3339 with a zone")
    if to_micros(event.refunded) > to_micros(event.paid):
        return Rejection(
            reasons.INVALID_FIELD,
            "refunded",
            f"{event.refunded} is more than the {event.paid} that were paid: `paid` is the whole order's, refunds not taken off",
        )
    return _keyed(key, order_key(event.advertiser_id, event.order_id)) or Order(
        event.advertiser_id,
        event.order_id,
        event.user_id,
        time_ms,
        event.currency,
        to_micros(event.paid),
        to_micros(event.refunded),
    )


def judge_report(key: bytes | None, value: bytes | None) -> Report | Rejection:
    """The whole contract for one record of `platforms.reported`."""
    event = _judged(_decode_report, ("advertiser_id", "platform", "campaign_id", "conversion_name"), value)
    if isinstance(event, Rejection):
        return event
    if event.value is not None and event.currency is None:
        return Rejection(reasons.MISSING_FIELD, "currency", "a value needs its currency")
    day = _ordinal(event.day)
    if isinstance(day, Rejection):
        return day
    wanted = report_key(event.advertiser_id, event.platform, event.campaign_id, event.conversion_name, event.day)
    return _keyed(key, wanted) or Report(
        event.advertiser_id,
        event.platform,
        event.campaign_id or "",
        day,
        event.conversion_name,
        to_micros(event.conversions),
        None if event.value is None else to_micros(event.value),
        event.currency or "",
    )


def judge_spend(key: bytes | None, value: bytes | None) -> Spend | Rejection:
    """The whole contract for one record of `spend`."""
    event = _judged(_decode_spend, ("advertiser_id", "platform", "campaign_id", "source"), value)
    if isinstance(event, Rejection):
        return event
    day = _ordinal(event.day)
    if isinstance(day, Rejection):
        return day
    wanted = spend_key(event.advertiser_id, event.platform, event.campaign_id, event.source, event.day)
    return _keyed(key, wanted) or Spend(
        event.advertiser_id,
        event.platform,
        event.campaign_id,
        event.source,
        day,
        to_micros(event.amount),
        event.currency,
    )


def _judged(decode: Callable[[bytes], Struct], ids: tuple[str, ...], value: bytes | None) -> Struct | Rejection:
    event = judge_bytes(value, decode)
    if isinstance(event, Rejection):
        return event
    for name in ids:
        text = getattr(event, name)
        if text is not None and _CONTROL.search(text):
            return Rejection(reasons.INVALID_FIELD, name, "control characters are not allowed in an id")
    return event


def _keyed(key: bytes | None, wanted: bytes) -> Rejection | None:
    """Kafka keeps the last record of a key: under another one two versions of one thing would stand side by side."""
    if key == wanted:
        return None
    return Rejection(reasons.KEY_MISMATCH, "", f"the record's key must be {wanted.decode()}, without blanks"[:400])


def _ordinal(day: str) -> int | Rejection:
    try:
        found = date.fromisoformat(day).toordinal()
    except ValueError:
        return Rejection(reasons.INVALID_FIELD, "day", f"{day!r} is no day of the calendar")
    if not FIRST_DAY <= found <= LAST_DAY:
        return Rejection(reasons.INVALID_FIELD, "day", f"{day!r} is out of range: 1970-01-01 to 9998-12-31")
    return found
