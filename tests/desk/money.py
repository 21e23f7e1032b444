"""Records for the desk's folds about money, as the counters, the shop and the platforms write them."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from app.contract import money, rows
from app.contract.journeys import JourneyRow, PathTouch, journey_key
from app.contract.rows import AttributedRow, CountRow, DeadLetter
from app.desk.fold import Input
from app.policy.load import parse_desk, parse_policy
from app.policy.model import Policy
from app.settings import Settings

SETTINGS = Settings()
DOCUMENT: dict[str, Any] = {
    "dimensions": ["campaign_id", "creative_id", "landing_page", "offer_id", "source"],
    "journeys": {"window": "30d", "orders": ["purchase"]},
    "adjustment_window": "90d",  # so that no window of a test is settled
    "platforms": {
        "meta": {"method": "click_then_view", "windows": {"click": "7d", "view": "1d"}},
        "google_ads": {"method": "click", "windows": {"click": "30d"}},
    },
    "actions": {
        "purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"},
        "signup": {"class": "micro", "intent": "soft", "outcome": "retention", "count": "one"},
        "scroll": {"class": "micro", "intent": "soft", "count": "one"},  # no outcome: noise
    },
    "desk": {
        "advertisers": {"shop": {"time_zone": "Europe/Berlin", "cost_currency": "EUR"}},
        "tolerances": {"meta": 0.1},
    },
}
POLICY, _ = parse_policy(DOCUMENT)
DESK = parse_desk(DOCUMENT, POLICY.versions[0])


def followed_by(document: dict[str, Any], from_ms: int) -> Policy:
    """The policy of the tests, and another version of it from then on."""
    later = parse_policy(document)[0].versions[0]
    return Policy(
        POLICY.bounds, (*POLICY.versions, msgspec.structs.replace(later, number=2, effective_from_ms=from_ms))
    )


def at(text: str) -> int:
    """Epoch ms of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def record(topic: str, offset: int, key: bytes | None, value: object, partition: int = 0) -> Input:
    """A record whose value is a row, a JSON object, bytes, or None."""
    raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
    return Input(topic, partition, offset, 0, key, raw)


def numbered(records: Iterable[tuple[str, bytes | None, object]]) -> list[Input]:
    """Records in the order of their topics."""
    return [record(topic, offset, key, value) for offset, (topic, key, value) in enumerate(records)]


Entry = tuple[str, bytes | None, object]


def attributed(time: str | int, event_id: str = "c1", user: str = "u1", platform: str = "meta", **fields: Any) -> Entry:
    """A conversion as a platform's method judges it; counted for campaign `spring` unless it says otherwise."""
    time_ms = at(time) if isinstance(time, str) else time
    row = AttributedRow(
        **{
            "advertiser_id": "shop", "user_id": user, "platform": platform, "conversion_name": "purchase", "event_id": event_id,
            "event_time": time_ms, "order_id": None, "status": "counted", "conversions": 1, "value": 10.0, "currency": "EUR",
            "action_class": "macro", "intent": "hard", "outcome": "revenue", "method": "click", "policy_version": 1,
            "duplicate_of": None, "touch_type": "click", "touch_event_id": "t1", "touch_time": time_ms - 1,
            "time_to_convert_ms": 1, "campaign_id": "spring", "ad_id": None, "creative_id": None, "landing_page": None,
            "offer_id": None, "source": None, "medium": None, "revision": 1,
        }
        | fields
    )  # fmt: skip
    key = rows.attributed_key(row.advertiser_id, row.user_id, row.platform, row.conversion_name, row.event_id)
    return SETTINGS.attributed_topic, key, row


def touch(platform: str = "meta", campaign: str | None = "spring", **fields: Any) -> PathTouch:
    """A credited touch."""
    return PathTouch(
        **{
            "platform": platform, "touch_type": "click", "event_id": "t1", "time": 1, "campaign_id": campaign, "ad_id": None,
            "creative_id": None, "landing_page": None, "offer_id": None, "source": None, "medium": None,
        }
        | fields
    )  # fmt: skip


def journey(time: str | int, event_id: str = "c1", user: str = "u1", **fields: Any) -> Entry:
    """A conversion once over all platforms; counted for meta's campaign `spring` unless it says otherwise."""
    time_ms = at(time) if isinstance(time, str) else time
    values: dict[str, Any] = dict.fromkeys(JourneyRow.__struct_fields__)
    values |= {
        "advertiser_id": "shop", "user_id": user, "conversion_name": "purchase", "event_id": event_id, "event_time": time_ms,
        "scope": "all", "status": "counted", "conversions": 1, "value": 10.0, "currency": "EUR", "action_class": "macro",
        "intent": "hard", "outcome": "revenue", "policy_version": 1, "credit": "last_click", "credited": touch(),
        "counted_by": [], "touches": [], "pages": [], "views": 0, "engaged_views": 0, "clicks": 0, "visits": 0, "revision": 1,
    }  # fmt: skip
    row = JourneyRow(**(values | fields))
    key = journey_key(row.advertiser_id, row.user_id, row.conversion_name, row.event_id)
    return SETTINGS.journeys_topic, key, row


def conversion(time: str | int, event_id: str = "c1", user: str = "u1", **fields: Any) -> list[Entry]:
    """One conversion that meta counts, in both topics."""
    claim, truth = (
        {name: value for name, value in fields.items() if name in struct.__struct_fields__}
        for struct in (AttributedRow, JourneyRow)
    )
    return [attributed(time, event_id, user, **claim), journey(time, event_id, user, **truth)]


def order(order_id: str, time: str | int, paid: float = 10.0, refunded: float = 0.0, **fields: Any) -> Entry:
    """An order of the shop."""
    event = {"advertiser_id": "shop", "order_id": order_id, "time": time, "paid": paid, "currency": "EUR"}
    event |= {"refunded": refunded} | fields
    if isinstance(event["time"], str) and "Z" not in event["time"]:
        event["time"] = at(event["time"])
    return SETTINGS.orders_topic, money.order_key(event["advertiser_id"], order_id), event


def report(
    day: str, conversions: float, platform: str = "meta", campaign: str | None = "spring", **fields: Any
) -> Entry:
    """What a platform claims of a day."""
    event = {
        "advertiser_id": "shop",
        "platform": platform,
        "campaign_id": campaign,
        "day": day,
        "conversions": conversions,
    }
    event |= fields
    key = money.report_key(event["advertiser_id"], platform, campaign, event.get("conversion_name"), day)
    return SETTINGS.reported_topic, key, event


def spend(day: str, amount: float, platform: str = "meta", campaign: str | None = "spring", **fields: Any) -> Entry:
    """What a campaign cost on a day."""
    event = {"advertiser_id": "shop", "platform": platform, "campaign_id": campaign, "day": day, "amount": amount}
    event |= {"currency": "EUR"} | fields
    key = money.spend_key(event["advertiser_id"], platform, campaign, event.get("source"), day)
    return SETTINGS.spend_topic, key, event


def touches(time: str | int, platform: str = "meta", campaign: str | None = "spring", **fields: Any) -> Entry:
    """A count row of touches: a minute, a platform and dimensions."""
    start = (at(time) if isinstance(time, str) else time) // 60_000 * 60_000
    dimensions = dict.fromkeys(DOCUMENT["dimensions"]) | {"campaign_id": campaign} | fields.pop("dimensions", {})
    row = CountRow(
        **{
            "window_start": start, "window_end": start + 60_000, "platform": platform, "advertiser_id": "shop",
            "dimensions": dimensions, "conversion_name": "", "currency": "", "views": 0, "engaged_views": 0, "clicks": 1,
            "conversions": 0, "value": 0.0, "cost": 0.0, "revision": 1, "final": True,
        }
        | fields
    )  # fmt: skip
    key = rows.count_key(
        start, platform, row.advertiser_id, list(dimensions.values()), row.conversion_name, row.currency
    )
    return SETTINGS.counts_topic, key, row


def letter(reason: str, time: str | int, event_id: str = "l1", user: str = "u1", **fields: Any) -> Entry:
    """A refused conversion."""
    event = {
        "event_type": "conversion", "event_id": event_id, "event_time": at(time) if isinstance(time, str) else time,
        "advertiser_id": "shop", "user_id": user, "conversion_name": "purchase", "platform": "meta",
    } | fields  # fmt: skip
    raw = orjson.dumps(event)
    row = DeadLetter(reason, "", "", "ads.events", 0, 1, 2, None, len(raw), "", False, base64.b64encode(raw).decode())
    return SETTINGS.dlq_topic, user.encode(), row
