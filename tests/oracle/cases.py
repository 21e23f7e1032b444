"""Small made-up events for the oracle's tests: one advertiser, one user, realistic times."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from app.contract.events import MAX_EVENT_BYTES
from app.contract.journeys import JourneyRow, PathTouch
from app.policy.load import parse_policy
from app.policy.model import Policy, Version
from app.verify.oracle import Answer, answer
from app.verify.records import Order, Record

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
T0 = 1_764_000_000_000  # 2025-11-24 16:00 UTC: a whole minute, 8 h before a half day ends
TOPIC, REKEYED = "ads.events", "onecount.rekeyed"
TOO_LARGE = MAX_EVENT_BYTES + 1

DOCUMENT: dict[str, Any] = {
    "dimensions": ["campaign_id", "ad_id"],
    "platforms": {
        "meta": {"method": "click_then_view", "windows": {"click": "7d", "view": "1d"}},
        "google_ads": {"method": "click_engaged_view", "windows": {"click": "30d", "engaged_view": "3d"}},
        "tiktok": {"method": "view", "windows": {"view": "1d"}, "actions": {"purchase": {"count": "one"}}},
        "linkedin": {"method": "click", "windows": {"click": "30d"}, "count": "every"},
    },
    "actions": {
        "purchase": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "every"},
        "demo": {"class": "macro", "intent": "hard", "outcome": "revenue", "count": "one", "value": 50},
        "signup": {"class": "micro", "intent": "soft", "outcome": "retention", "count": "one"},
        "scroll": {"class": "micro", "intent": "soft", "count": "every"},
    },
}
Fields = dict[str, Any]


def policy(**changes: Any) -> Policy:
    """The tests' policy with some of its top-level keys changed."""
    return parse_policy(DOCUMENT | changes)[0]


def two_versions(from_ms: int, **changes: Any) -> Policy:
    """The tests' policy, with a second version that differs in `changes` from `from_ms` on."""
    first, second = policy(), policy(**changes)
    version: Version = msgspec.structs.replace(second.versions[0], number=2, effective_from_ms=from_ms)
    return msgspec.structs.replace(first, versions=(*first.versions, version))


CART = {"class": "micro", "intent": "soft", "outcome": "revenue", "count": "every"}


def following(**changes: Any) -> Policy:
    """The tests' policy with journeys of 30 d: purchases are paid orders, carts and checkouts are left for an hour; some of
    its `journeys` changed.
    """
    abandonment = {"actions": ["cart", "checkout"], "after": "1h"}
    actions = DOCUMENT["actions"] | {"cart": CART, "checkout": CART}
    return policy(actions=actions, journeys={"orders": ["purchase"], "abandonment": abandonment} | changes)


def event(event_type: str, event_id: str, at_ms: int, **fields: Any) -> Fields:
    """An event of advertiser `a` and user `u` at T0 + `at_ms`; None takes a field away."""
    whole = {"event_id": event_id, "event_type": event_type, "event_time": T0 + at_ms}
    whole |= {"advertiser_id": "a", "user_id": "u"} | fields
    return {name: value for name, value in whole.items() if value is not None}


def touch(event_type: str, event_id: str, at_ms: int, **fields: Any) -> Fields:
    """A touch on meta, of campaign c and no ad, unless `fields` say otherwise."""
    return event(event_type, event_id, at_ms, **({"platform": "meta", "campaign_id": "c"} | fields))


def view(event_id: str, at_ms: int, **fields: Any) -> Fields:
    return touch("view", event_id, at_ms, **fields)


def click(event_id: str, at_ms: int, **fields: Any) -> Fields:
    return touch("click", event_id, at_ms, **fields)


def visit(event_id: str, at_ms: int, page: str = "/", **fields: Any) -> Fields:
    """A page view on the advertiser's site, of no platform unless `fields` say otherwise."""
    return event("visit", event_id, at_ms, page=page, **fields)


def conversion(event_id: str, at_ms: int, name: str = "purchase", **fields: Any) -> Fields:
    """A conversion reported by meta unless `fields` say otherwise."""
    return event("conversion", event_id, at_ms, conversion_name=name, **({"platform": "meta"} | fields))


def retract(event_id: str, at_ms: int, **fields: Any) -> Fields:
    return event("adjustment", event_id, at_ms, adjustment="retract", **fields)


def restate(event_id: str, at_ms: int, value: float, **fields: Any) -> Fields:
    return event("adjustment", event_id, at_ms, adjustment="restate", value=value, **fields)


def record(value: Fields | bytes | None, offset: int, **changes: Any) -> Record:
    """A record of partition 0 that arrived when its event happened; bytes, and null, arrived at T0."""
    timestamp_ms = value["event_time"] if isinstance(value, dict) else T0
    raw = json.dumps(value).encode() if isinstance(value, dict) else value
    fields = {"topic": TOPIC, "partition": 0, "timestamp_ms": timestamp_ms, "key": None} | changes
    return Record(offset=offset, value=raw, **fields)


def answer_to(*events: Fields | bytes | None, rules: Policy | None = None) -> Answer:
    """The answer to events that lie one after the other in the one partition of one topic."""
    return answer([record(value, offset) for offset, value in enumerate(events)], rules or policy(), 1)


def answer_in_order(
    records: list[Record], order: Order | None, rekeyed: str | None = None, partitions: int = 1
) -> Answer:
    """The answer to records of several topics."""
    return answer(records, policy(), partitions, order, rekeyed)


def rows_of(result: Answer) -> dict[tuple[str, str], Any]:
    """The attributed rows by (platform, event_id)."""
    return {(row.platform, row.event_id): row for row in result.attributed.values()}


def statuses(result: Answer) -> dict[tuple[str, str], str]:
    """The statuses by (platform, event_id)."""
    return {where: row.status for where, row in rows_of(result).items()}


def meta_statuses(*events: Fields, rules: Policy | None = None) -> dict[str, str]:
    """The statuses that meta's rows of these events have, by event_id."""
    return {
        event_id: status
        for (platform, event_id), status in statuses(answer_to(*events, rules=rules)).items()
        if platform == "meta"
    }


def credited(*events: Fields, platform: str = "meta", event_id: str = "x", rules: Policy | None = None) -> str | None:
    """The event_id of the touch that the conversion `x` is credited to."""
    return rows_of(answer_to(*events, rules=rules))[platform, event_id].touch_event_id


def counts_of(result: Answer) -> dict[tuple[Any, ...], dict[str, float]]:
    """The count rows' measures that are not 0, by (window start - T0, platform, campaign, ad, conversion_name, currency)."""
    return {
        (row.window_start - T0, row.platform, *row.dimensions.values(), row.conversion_name, row.currency): {
            name: getattr(row, name)
            for name in ("views", "engaged_views", "clicks", "conversions", "value", "cost")
            if getattr(row, name)
        }
        for row in result.counts.values()
    }


def journeys_of(*events: Fields, **changes: Any) -> dict[str, JourneyRow]:
    """The journey rows of these events by event_id; `changes` are of the policy's `journeys`."""
    return {row.event_id: row for row in answer_to(*events, rules=following(**changes)).journeys.values()}


def journey_of(*events: Fields, event_id: str = "x", **changes: Any) -> JourneyRow:
    """The journey row of one conversion."""
    return journeys_of(*events, **changes)[event_id]


def ids(touches: Iterable[PathTouch]) -> list[str]:
    """The event_ids of touches, in order."""
    return [each.event_id for each in touches]


def shares_by(model: str, *events: Fields, event_id: str = "x", **changes: Any) -> dict[str, int]:
    """What a model gives to each touch of a conversion, in millionths, by the touch's event_id and in the row's order."""
    rows = answer_to(*events, rules=following(**changes)).models.values()
    (row,) = [row for row in rows if (row.event_id, row.model) == (event_id, model)]
    return {credit.touch.event_id: round(credit.share * 1_000_000) for credit in row.credits}


def conversions_in(result: Answer, scope: str = "platform") -> tuple[int, float]:
    """All counted conversions of a scope and their value, from the count rows."""
    rows = [row for row in result.counts.values() if row.scope == scope]
    return sum(row.conversions for row in rows), sum(row.value for row in rows)
