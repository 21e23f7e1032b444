"""Small worlds for the engine's tests: a policy with short windows, and a few events whose times lie on its edges.

Times stand on a grid of 6 hours, give or take a millisecond, and all durations are multiples of the grid: so "exactly at the
window", "just beyond the horizon" and "the same instant" are common, and a dozen events span weeks of expiry.
"""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import hypothesis.strategies as st

from app.contract.events import TOUCH_ATTRIBUTES
from app.intake.partitioner import owners
from app.policy.model import DAY_MS, METHODS, Action, Bounds, Platform, Policy, Version

UNIT_MS: Final = 6 * 3_600_000
START_MS: Final = 19_700 * DAY_MS
FOREVER_MS: Final = 1_000 * DAY_MS
USERS: Final = ("ann", "bob", "zoë", "u" * 40)
ADVERTISERS: Final = ("shop", "bank")
PLATFORMS: Final = ("meta", "tiktok")
ACTIONS: Final = ("purchase", "signup", "newsletter", "unheard_of")
FRESH: Final = 4  # event ids up to this one come again and again, the others are new each time


@dataclass(frozen=True)
class Arrival:
    """One record on its way to Kafka: everything but its offset."""

    topic: int
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class Order(Enum):
    """What the order of processing in an owner's partition hangs on.

    A rebuild may take the records of several topics in another order than they were counted in; so a world in which the
    counter's state may be lost has either one topic and no foreign event, or events whose order decides nothing.
    """

    LOG = "log"  # one topic, no foreign event: the log alone says the order
    MIXED = "mixed"  # several topics or foreign events, so the batches that were committed decide
    TAME = "tame"  # likewise, but no event is beyond a horizon, and no identity comes with another payload


@dataclass(frozen=True)
class World:
    """A policy and the records that come, in order."""

    policy: Policy
    partitions: int
    topics: int
    arrivals: tuple[Arrival, ...]
    order: Order


def units(*counts: int) -> st.SearchStrategy[int]:
    """Durations of so many steps of the grid, in milliseconds."""
    return st.sampled_from([count * UNIT_MS for count in counts])


@st.composite
def versions(draw: st.DrawFn, number: int, effective_from_ms: int) -> Version:
    """The rules of one version."""
    platforms = {}
    for name in PLATFORMS:
        method = draw(st.sampled_from(sorted(METHODS)))
        windows_ms = {kind: draw(units(1, 2, 4, 8)) for kind in METHODS[method]}
        counts = draw(st.sampled_from([{}, {}, {"*": "one"}, {"purchase": "one"}, {"*": "one", "signup": "every"}]))
        platforms[name] = Platform(method, windows_ms, counts)
    actions = {
        "purchase": Action("macro", "hard", "revenue", "every", None),
        "signup": Action("micro", "soft", "retention", draw(st.sampled_from(["one", "every"])), 5_000_000),
        "newsletter": Action("micro", "soft", None, "one", None),  # no outcome: noise
    }
    return Version(number, effective_from_ms, platforms, actions)


@st.composite
def policies(draw: st.DrawFn, shortest_dedup: int = 1) -> Policy:
    """A policy of one or two versions, whose dedup window has at least so many steps of the grid."""
    dimensions = draw(st.sampled_from([("campaign_id",), ("campaign_id", "ad_id", "landing_page")]))
    bounds = Bounds(
        partitioner=draw(st.sampled_from(["murmur2", "crc32"])),
        dimensions=dimensions,
        keep=draw(st.sampled_from([TOUCH_ATTRIBUTES, dimensions])),
        window_ms=draw(st.sampled_from([60_000, DAY_MS])),
        allowed_lateness_ms=draw(st.sampled_from([0, 60_000, UNIT_MS])),
        correction_horizon_ms=draw(units(2, 4, 8)),
        max_event_age_ms=draw(st.sampled_from([4 * UNIT_MS, FOREVER_MS, FOREVER_MS])),
        max_clock_skew_ms=draw(st.sampled_from([1, 300_000])),
        dedup_window_ms=draw(units(shortest_dedup, 4, 8)),
        order_window_ms=draw(units(1, 4, 10)),
        adjustment_window_ms=draw(units(1, 4, 10)),
    )
    found = [draw(versions(1, 0))]
    if draw(st.integers(0, 3)) == 0:
        found.append(draw(versions(2, START_MS + draw(st.integers(0, 12)) * UNIT_MS)))
    return Policy(bounds, tuple(found))


class _Scribe:
    """Writes the events of one world, and sees to it that no identity is used in a way that the rules leave open.

    `crowd`: how many users and advertisers there are. In a world of one, nearly every event bears on every other.
    """

    def __init__(self, policy: Policy, partitions: int, topics: int, order: Order, crowd: int) -> None:
        self.policy, self.partitions, self.topics, self.order = policy, partitions, topics, order
        self.users, self.advertisers = USERS[:crowd], ADVERTISERS[:crowd]
        self.now_ms = START_MS
        self.written: list[tuple[dict[str, Any], bytes | None]] = []
        self.arrivals: list[Arrival] = []
        self.first: dict[tuple[Any, ...], tuple[str, int]] = {}  # who used an identity first, and the event's time
        bounds = policy.bounds
        self.longest_ms = policy.conversion_retention_ms() - bounds.correction_horizon_ms

    def write(self, draw: st.DrawFn) -> None:
        """One more record."""
        shape = draw(st.sampled_from(["new"] * 14 + ["repeat"] * 3 + ["altered"] * 2 + ["junk"]))
        advance = 0 if self.order is Order.TAME else draw(st.sampled_from([0] * 6 + [1, 1, 2, 4, 12]))
        self.now_ms += advance * UNIT_MS
        if shape == "junk":
            junk = draw(st.sampled_from([None, b"", b"{}", b"\xff", b'{"event_id": 1}', b"[]", b"x" * 20_000]))
            self._send(draw, "ann", None, junk)
            return
        if shape == "repeat" and self.written:
            event, key = draw(st.sampled_from(self.written))
            self._send(draw, event["user_id"], key, _encode(event))
            return
        event = self._event(draw)
        if shape == "altered" and self.written and self.order is not Order.TAME:
            event = self._altered(draw, event)
        self._keep_within_the_rules(event)
        key = None if draw(st.booleans()) else event["user_id"].encode()
        if draw(st.integers(0, 30)) == 30:
            key = b"another"
        self.written.append((event, key))
        self._send(draw, event["user_id"], key, _encode(event))

    def _event(self, draw: st.DrawFn) -> dict[str, Any]:
        late = draw(st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 8]))
        if self.order is Order.TAME:  # within the horizon and the dedup window of each other, whatever comes first
            late = min(late, 1)
        time_ms = self.now_ms - late * UNIT_MS + draw(st.sampled_from([0, 0, 0, -1, 1]))
        kind = draw(
            st.sampled_from(
                ["view", "click", "engaged_view", "visit"] + ["click"] + ["conversion"] * 4 + ["adjustment"] * 2
            )
        )
        event: dict[str, Any] = {
            "event_id": self._id(draw, kind[0]),
            "event_type": kind,
            "event_time": time_ms,
            "advertiser_id": draw(st.sampled_from(self.advertisers)),
            "user_id": draw(st.sampled_from(self.users)),
        }
        if kind == "visit":
            return event | {"page": "/"}
        if kind == "conversion":
            return event | self._conversion(draw)
        if kind == "adjustment":
            return event | self._adjustment(draw)
        platform = draw(st.sampled_from([PLATFORMS[0]] * 8 + [PLATFORMS[1]] * 3 + ["nowhere"]))
        touch = {"platform": platform, "campaign_id": draw(st.sampled_from(["c1", "c2", "ç3"]))}
        if draw(st.booleans()):
            touch |= {"ad_id": draw(st.sampled_from(["a1", "a2"])), "landing_page": "https://shop.example/?a=1"}
        if draw(st.booleans()):
            touch["cost"] = draw(st.sampled_from([0, 0.1, 0.2, 1.0000005, 12]))
        return event | touch

    def _id(self, draw: st.DrawFn, letter: str) -> str:
        number = draw(st.integers(0, 3 * FRESH))
        if self.order is Order.TAME or number >= FRESH:
            return f"{letter}{len(self.arrivals) + FRESH}" + "-" * draw(st.sampled_from([0, 0, 0, 20, 80]))
        return f"{letter}{number}"

    def _conversion(self, draw: st.DrawFn) -> dict[str, Any]:
        event: dict[str, Any] = {"conversion_name": draw(st.sampled_from([*ACTIONS, *ACTIONS[:2] * 4]))}
        platform = draw(st.sampled_from([None, PLATFORMS[0], *PLATFORMS]))
        if platform:
            event["platform"] = platform
        if draw(st.booleans()):
            event |= {
                "value": draw(st.sampled_from([0, 0.1, 3, 19.99])),
                "currency": draw(st.sampled_from(["EUR", "USD"])),
            }
        order = draw(st.sampled_from([None, "", "o1", "o1", "o2"]))
        if order is not None:
            event["order_id"] = order
        return event

    def _adjustment(self, draw: st.DrawFn) -> dict[str, Any]:
        event: dict[str, Any] = {"adjustment": draw(st.sampled_from(["retract", "restate"]))}
        if event["adjustment"] == "restate":
            event["value"] = draw(st.sampled_from([0, 0.7, 100]))
        if draw(st.booleans()):
            event["order_id"] = draw(st.sampled_from(["o1", "o2"]))
        else:
            known = [each["event_id"] for each, _ in self.written if each["event_type"] == "conversion"]
            event["conversion_event_id"] = draw(st.sampled_from([*known, "c0", "c1"]))
        if draw(st.integers(0, 3)) == 0:
            event["platform"] = draw(st.sampled_from(PLATFORMS))
        if draw(st.integers(0, 3)) == 0:
            event["conversion_name"] = draw(st.sampled_from(ACTIONS))
        return event

    def _altered(self, draw: st.DrawFn, event: dict[str, Any]) -> dict[str, Any]:
        """Another event with the identity of an earlier one, as a careless producer sends it."""
        earlier, _ = draw(st.sampled_from(self.written))
        same = ("event_id", "event_type", "advertiser_id", "platform", "conversion_name")
        whole = event if event["event_type"] == earlier["event_type"] else earlier
        return whole | {name: earlier[name] for name in same if name in earlier}

    def _keep_within_the_rules(self, event: dict[str, Any]) -> None:
        """Gives a conversion or an adjustment a new id where its old one would be judged by what is kept "at the least".

        An id that comes again is a duplicate while its first event is held; how long that is beyond the retention is left open.
        So is whether a repeat that came while it was held keeps the id from ANOTHER user for another dedup window.
        """
        if event["event_type"] not in ("conversion", "adjustment"):
            return
        names = ("advertiser_id", "platform", "event_type", "conversion_name", "event_id")
        identity = tuple(event.get(name) for name in names)
        user, time_ms = self.first.setdefault(identity, (event["user_id"], event["event_time"]))
        is_noise = event.get("conversion_name") in ACTIONS[2:] and event["event_type"] == "conversion"
        apart_ms = abs(event["event_time"] - time_ms)
        same_user = user == event["user_id"]
        sound = apart_ms <= self.longest_ms if same_user else self.now_ms < time_ms + self.policy.bounds.dedup_window_ms
        if (event["user_id"], event["event_time"]) != (user, time_ms) and (is_noise or not sound):
            event["event_id"] += f"+{len(self.arrivals)}"

    def _send(self, draw: st.DrawFn, user_id: str, key: bytes | None, value: bytes | None) -> None:
        partition = int(owners([user_id.encode()], self.partitions, self.policy.bounds.partitioner)[0])
        if self.order is not Order.LOG and draw(st.integers(0, 3)) == 0:
            partition = draw(st.integers(0, self.partitions - 1))
        topic = draw(st.integers(0, self.topics - 1)) if self.topics > 1 else 0
        self.arrivals.append(Arrival(topic, partition, key, value, self.now_ms))


@st.composite
def worlds(draw: st.DrawFn, orders: tuple[Order, ...] = tuple(Order), longest: int = 30) -> World:
    """A world of up to `longest` records."""
    order = draw(st.sampled_from(orders))
    policy = draw(policies(1 if order is not Order.TAME else 4))
    partitions = draw(st.sampled_from([1, 1, 2, 3]))
    topics = 1 if order is Order.LOG else draw(st.integers(1, 2))
    scribe = _Scribe(policy, partitions, topics, order, draw(st.sampled_from([1, 1, 4])))
    for _ in range(draw(st.sampled_from([2, 5, longest, longest]))):
        scribe.write(draw)
    return World(policy, partitions, topics, tuple(scribe.arrivals), order)


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()
