"""Made-up rows of the desk's input topics, and what a reader of its output topics holds."""

from collections.abc import Iterable
from typing import Any

import orjson

from app.contract.journeys import JourneyRow, PathTouch, journey_key
from app.contract.rows import ALL, CountRow, count_key, encode
from app.desk.fold import DeskFold, Input, Output
from app.desk.published import Published, missing
from app.policy.desk import Desk, FollowUp

JOURNEYS, FOLLOWUPS, COUNTS = "conversions.journeys", "leads.followups", "conversions.counts"
LEADS, OVERDUE, REFUSED, ROLLUPS = "leads", "leads.overdue", "leads.followups.dlq", "conversions.rollups"
HARD = ("demo_booked", "purchase", "checkout_started")
DESK = Desk(
    time_zones={"shop": "Europe/Berlin", "far": "Asia/Kolkata"},
    cost_currencies={"shop": "EUR"},
    follow_ups={
        "demo_booked": FollowUp("call back", 4 * 3_600_000),
        "newsletter": FollowUp("next issue", 7 * 86_400_000),
    },
    tolerances={"meta": 0.1},
)
ORDERS = ("purchase",)
TOUCH = PathTouch("meta", "click", "t1", 1, "spring", "a1", None, "/mattress", None, "facebook", "cpc")
FIRST = PathTouch("google_ads", "view", "t0", 0, "brand", None, None, None, None, None, None)


def journey(
    user: str,
    action: str,
    event_id: str,
    time_ms: int,
    *,
    status: str = "counted",
    credited: PathTouch | None = TOUCH,
    advertiser: str = "shop",
    revision: int = 1,
) -> JourneyRow:
    """A journey of which only what the desk reads varies."""
    return JourneyRow(
        advertiser_id=advertiser, user_id=user, conversion_name=action, event_id=event_id, event_time=time_ms, order_id=None,
        scope=ALL, status=status, conversions=int(status == "counted"), value=1.0, currency="EUR", action_class="macro",
        intent="hard" if action in HARD else "soft", outcome="revenue", policy_version=1, credit="last_click",
        credited=credited, time_to_convert_ms=None, counted_by=[], first_touch=FIRST, touches=[], views=1, engaged_views=0,
        clicks=1, visits=0, pages=[], first_visit_time=None, first_page=None, first_referrer=None,
        time_from_first_touch_ms=None, time_from_first_visit_ms=None, customer=None, abandoned_action=None,
        abandoned_time=None, returned_by=None, revision=revision,
    )  # fmt: skip


def key_of(row: JourneyRow) -> bytes:
    return journey_key(row.advertiser_id, row.user_id, row.conversion_name, row.event_id)


def count(start_ms: int, campaign: str | None = "spring", **measures: Any) -> tuple[bytes, CountRow]:
    """A count row and its key."""
    platform, advertiser = measures.pop("platform", "meta"), measures.pop("advertiser", "shop")
    action, currency = measures.pop("action", ""), measures.pop("currency", "")
    zeros = dict.fromkeys(("views", "engaged_views", "clicks", "conversions"), 0) | {"value": 0.0, "cost": 0.0}
    row = CountRow(
        start_ms, start_ms + 60_000, platform, advertiser, {"campaign_id": campaign}, action, currency,
        **(zeros | {"revision": 1, "final": False, "scope": ALL if platform == ALL else "platform"} | measures),
    )  # fmt: skip
    return count_key(start_ms, platform, advertiser, [campaign], action, currency), row


def told(kind: str, time_ms: int, user: str, action: str | None, advertiser: str = "shop") -> bytes:
    """A follow-up as a CRM sends it."""
    return orjson.dumps(
        {"kind": kind, "event_time": time_ms, "advertiser_id": advertiser, "user_id": user, "conversion_name": action}
    )


def as_input(topic: str, offset: int, key: bytes | None, value: Any, partition: int = 0) -> Input:
    """A record; its time is long after what it tells."""
    raw = value if value is None or isinstance(value, bytes) else encode(value)
    return Input(topic, partition, offset, 4_000_000_000_000, key, raw)


class Reader:
    """What somebody who reads the output topics holds."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.published = Published(topics, {})
        self.offset = 0

    def read(self, outputs: Iterable[Output]) -> None:
        """Takes what a desk publishes."""
        for output in outputs:
            self.offset += 1
            self.published.take(Input(output.topic, 0, self.offset, 0, output.key, output.value))

    def begin(self, folds: list[DeskFold], now_ms: int) -> None:
        """Takes what a desk that begins anew publishes."""
        self.read(list(missing(folds, self.published, now_ms)))

    def rows(self, topic: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The rows by key."""
        return {tuple(orjson.loads(key)): orjson.loads(row) for key, row in self.published.rows[topic].items()}


def holds(thing: Any, text: str, seen: set[int] | None = None) -> bool:
    """Whether a text is anywhere in what an object refers to."""
    seen = seen if seen is not None else set()
    if id(thing) in seen or isinstance(thing, type):
        return False
    seen.add(id(thing))
    if isinstance(thing, (str, bytes)):
        return text in thing if isinstance(thing, str) else text.encode() in thing
    parts = list(thing) if isinstance(thing, (set, frozenset, list, tuple)) else []
    parts += [*thing.keys(), *thing.values()] if isinstance(thing, dict) else []
    parts += [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
    parts += [getattr(thing, "__dict__", None)]
    return any(holds(each, text, seen) for each in parts)
