"""Worlds of one user in which every record changes what was published before: better touches that come late, corrections, and
ids that come again with another payload, so that their order decides.
"""

import json
from random import Random
from typing import Any, Final

import msgspec

from app.policy.model import Action, Bounds, Journeys, Platform, Policy, Version
from tests.property.policies import FOREVER_MS, MERGE_MS, MINUTE_MS, START_MS, UNIT_MS
from tests.property.worlds import Arrival, Order, World

POLICY: Final = Policy(
    Bounds(
        correction_horizon_ms=8 * UNIT_MS,
        max_event_age_ms=FOREVER_MS,
        dedup_window_ms=8 * UNIT_MS,
        order_window_ms=8 * UNIT_MS,
        adjustment_window_ms=8 * UNIT_MS,
    ),
    (
        Version(
            1,
            0,
            {
                "meta": Platform("click_then_view", {"click": 4 * UNIT_MS, "view": UNIT_MS}, {}),
                "tiktok": Platform("view", {"view": UNIT_MS}, {}),
            },
            {
                "purchase": Action("macro", "hard", "revenue", "one", None),
                "cart": Action("micro", "soft", "revenue", "every", None),
            },
            merge_reports_ms=MERGE_MS,
        ),
    ),
)
JOURNEYS: Final = Journeys(
    window_ms=4 * UNIT_MS,
    half_life_ms=7 * MINUTE_MS,
    max_touches=3,
    max_pages=2,
    orders=("purchase",),
    customer_window_ms=5 * MINUTE_MS,
    abandoned_actions=("cart",),
    abandon_after_ms=2 * MINUTE_MS,
)
LATEST_MIN: Final = 20


def make_event(chance: Random, rare: list[str]) -> dict[str, Any]:
    """One event of the user within the same minutes as all others. `rare`: kinds of events that not every world has."""
    minute = chance.randint(0, LATEST_MIN)
    event = {"event_time": START_MS + minute * MINUTE_MS, "advertiser_id": "shop", "user_id": "ann"}
    kinds = ["click", "click", "view", "view", "visit", *["conversion"] * 3, "restate", "retract"]
    kind = chance.choice([*kinds, *kinds, *rare])
    number = chance.randint(0, 9)
    if kind == "conversion":
        order = {"order_id": f"o{number % 3}"} if chance.randrange(3) == 0 else {}
        platform = {"platform": chance.choice(["meta", "tiktok"])} if chance.randrange(3) == 0 else {}
        names = {"event_id": f"c{number % 6}", "conversion_name": chance.choice(["purchase", "purchase", "cart"])}
        return event | order | platform | names | make_report(chance) | {"event_type": kind}
    if kind in ("click", "view"):
        campaign = chance.choice(["c1", "c2", "c3"])
        platform = chance.choice(["meta", "meta", "tiktok"])
        return event | {"event_type": kind, "event_id": f"t{number}", "platform": platform, "campaign_id": campaign}
    if kind == "forget":
        return event | {"event_type": kind, "event_id": f"f{number}"}
    if kind == "visit":
        return event | {"event_type": kind, "event_id": f"s{number}", "page": chance.choice(["/", "/cart"])}
    value = {"value": minute} if kind == "restate" else {}
    said = {
        "conversion_name": chance.choice([None, None, "purchase", "cart"]),
        "currency": chance.choice([None, "EUR"]),
    }
    named = {name: each for name, each in said.items() if each} | {"conversion_event_id": f"c{number % 6}"}
    return event | value | named | {"event_type": "adjustment", "event_id": f"a{number}", "adjustment": kind}


def make_report(chance: Random) -> dict[str, Any]:
    """What a report says of its conversion, and who reports."""
    said = {
        "value": chance.choice([None, None, 0, 5, 7]),
        "currency": chance.choice([None, None, "EUR", "USD"]),
        "reported_by": chance.choice([None, None, "browser"]),
    }
    return {name: value for name, value in said.items() if value is not None}


def make_dense_world(chance: Random) -> World:
    """A world of one user in one partition; of two topics, where their order is to decide."""
    topics = chance.choice([1, 1, 2])
    rare = chance.choice([[], [], ["forget"]])
    now_ms = START_MS + LATEST_MIN * MINUTE_MS
    arrivals = tuple(
        Arrival(number % topics, 0, None, json.dumps(make_event(chance, rare)).encode(), now_ms)
        for number in range(chance.choice([6, 20, 30]))
    )
    bounds = msgspec.structs.replace(POLICY.bounds, journeys=chance.choice([None, JOURNEYS]))
    return World(Policy(bounds, POLICY.versions), 1, topics, arrivals, Order.LOG if topics == 1 else Order.MIXED)
