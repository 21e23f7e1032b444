"""Small worlds for the engine's tests: a policy with short windows, and a few events whose times lie on its edges.

An event is mostly aimed at an earlier one: a conversion at a touch, a touch (late, then) at a conversion, an adjustment at an
order; and its time is mostly an edge of what decides between the two: the same instant, exactly the window, a millisecond more.
"""

import json
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, Final

from app.columns.texts import texts_of
from app.contract.events import TOUCH_TYPES
from app.intake.partitioner import owners
from app.policy.model import Policy
from tests.property.policies import ACTIONS, MERGE_MS, MINUTE_MS, NOISE, PLATFORMS, START_MS, UNIT_MS, make_policy

USERS: Final = ("ann", "bob", "zoë", "u" * 40)
ADVERTISERS: Final = ("shop", "bank")
FRESH: Final = 4  # event ids up to this one come again and again, the others are new each time
KINDS: Final = ("view", "click", "click", "engaged_view", "visit", *["conversion"] * 4, *["adjustment"] * 2)
FOLLOWED: Final = (*KINDS, "view", "click", "visit", "visit")  # where journeys are followed
JUNK: Final = (None, b"", b"{}", b"\xff", b'{"event_id": 1}', b"[]", b"x" * 20_000)

Event = dict[str, Any]


@dataclass(frozen=True)
class Arrival:
    """One record on its way to Kafka: everything but its offset."""

    topic: int
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...] = ()


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


class _Scribe:
    """Writes the events of one world, and sees to it that no identity is used in a way that the rules leave open.

    In a world of one user nearly every event bears on every other; where days pass between some, what is kept expires.
    """

    def __init__(self, chance: Random, policy: Policy, partitions: int, topics: int, order: Order) -> None:
        self.chance = chance
        self.policy, self.partitions, self.topics, self.order = policy, partitions, topics, order
        crowd = chance.choice([1, 1, 4])
        self.users, self.advertisers = USERS[:crowd], ADVERTISERS[:crowd]
        self.now_ms = START_MS
        leaps = [0] * 12 + [step * UNIT_MS for step in (1, 1, 2, 4, 12)]
        self.steps_ms = chance.choice([[0, 0, MINUTE_MS], leaps])
        self.written: list[tuple[Event, bytes | None]] = []
        self.arrivals: list[Arrival] = []
        self.first: dict[tuple[Any, ...], tuple[str, int]] = {}  # who used an identity first, and the event's time
        self.journeys = policy.bounds.journeys
        self.kinds = FOLLOWED if self.journeys else KINDS
        if chance.randrange(3) == 0:
            self.kinds += ("forget",)
        self.longest_ms = policy.conversion_retention_ms() - policy.bounds.correction_horizon_ms

    def write(self) -> None:
        """One more record."""
        shape = self.chance.choice(["new"] * 14 + ["repeat"] * 3 + ["altered"] * 2 + ["report"] * 3 + ["junk"])
        if self.order is not Order.TAME:
            self.now_ms += self.chance.choice(self.steps_ms)
        if shape == "junk":
            self._send("ann", None, self.chance.choice(JUNK))
            return
        if shape == "repeat" and self.written:
            event, key = self.chance.choice(self.written)
            self._send(event["user_id"], key, _encode(event))
            return
        event = self._event()
        if shape == "altered" and self.written and self.order is not Order.TAME:
            event = self._altered(event)
        if shape == "report" and self.order is not Order.TAME:
            event = self._another_report() or event
        self._keep_within_the_rules(event)
        key = self.chance.choice([None] * 8 + [event["user_id"].encode()] * 16 + [b"another"])
        self.written.append((event, key))
        self._send(event["user_id"], key, _encode(event))

    def _event(self) -> Event:
        kind = self.chance.choice(self.kinds)
        event: Event = {
            "event_id": self._id(kind[0]),
            "event_type": kind,
            "event_time": self.now_ms
            - self.chance.choice([0, 0, 0, 1, MINUTE_MS, 7 * MINUTE_MS, UNIT_MS, 4 * UNIT_MS]),
            "advertiser_id": self.chance.choice(self.advertisers),
            "user_id": self.chance.choice(self.users),
        }
        if kind == "visit":
            event |= self._visit()
        elif kind == "conversion":
            event |= self._conversion()
        elif kind == "adjustment":
            event |= self._adjustment()
        elif kind != "forget":
            event |= self._touch()
        event = self._aimed(event)
        if self.order is Order.TAME:  # within the horizon and the dedup window of each other, whatever comes first
            event["event_time"] = max(min(event["event_time"], START_MS), START_MS - UNIT_MS)
        self.now_ms = max(self.now_ms, event["event_time"])
        return event

    def _id(self, letter: str) -> str:
        number = self.chance.randint(0, 4 * FRESH)
        if self.order is Order.TAME or number >= FRESH:
            return f"{letter}{len(self.arrivals) + FRESH}" + "-" * {FRESH: 20, FRESH + 1: 80}.get(number, 0)
        return f"{letter}{number}"

    def _touch(self) -> Event:
        event: Event = {
            "platform": self.chance.choice([PLATFORMS[0]] * 12 + [PLATFORMS[1]] * 4 + ["nowhere"]),
            "campaign_id": self.chance.choice(["c1", "c2", "ç3"]),
            "cost": self.chance.choice([None, None, 0, 0.1, 0.2, 1.0000005, 12]),
        }
        if self.chance.random() < 0.5:
            event |= {"ad_id": self.chance.choice(["a1", "a2"]), "landing_page": "https://shop.example/?a=1"}
        return event

    def _visit(self) -> Event:
        return {
            "page": self.chance.choice(["/", "/cart", "/ü"]),
            "referrer": self.chance.choice([None, "", "https://search.example/"]),
            "platform": self.chance.choice([None, None, None, "meta", "nowhere"]),
        }

    def _conversion(self) -> Event:
        return {
            "conversion_name": self.chance.choice([*NOISE, *ACTIONS * 3, *ACTIONS[:2]]),
            "platform": self.chance.choice([None, PLATFORMS[0], *PLATFORMS]),
            "order_id": self.chance.choice([None, None, None, "", "o1", "o2"]),
            "value": self.chance.choice([None, None, 0, 0.1, 3, 19.99]),
            "currency": self.chance.choice([None, None, "EUR", "USD"]),
            "reported_by": self.chance.choice([None, None, "browser", "server"]),
        }

    def _adjustment(self) -> Event:
        event: Event = {
            "adjustment": self.chance.choice(["retract", "restate"]),
            "value": self.chance.choice([0, 0.7, 100]),
            "platform": self.chance.choice([None, None, None, "meta"]),
            "conversion_name": self.chance.choice([None, None, None, *ACTIONS[:2]]),
            "currency": self.chance.choice([None, None, "EUR", "USD"]),
        }
        if self.chance.random() < 0.5:
            return event | {"order_id": self.chance.choice(["o1", "o2"])}
        return event | {"conversion_event_id": self.chance.choice(["c0", "c1"])}

    def _aimed(self, event: Event) -> Event:
        """The event as one of an earlier event's user, and so many milliseconds before or after it."""
        kind = event["event_type"]
        either = self.chance.choice([TOUCH_TYPES, TOUCH_TYPES, ("conversion",)])
        wanted = either if kind in ("conversion", "forget") else ("conversion",)
        others = [other for other, _ in self.written[-8:] if other["event_type"] in wanted]
        if (kind == "visit" and not self.journeys) or not others or self.chance.randint(0, 4) == 4:
            return event
        other = self.chance.choice(others)
        event |= {name: other[name] for name in ("advertiser_id", "user_id")}
        if kind == "forget":
            return event | {"event_time": other["event_time"] + self._distance([])}
        if kind == "adjustment":
            return self._adjusting(event, other)
        if kind != "conversion":
            return self._leading_to(event, other)
        if other["event_type"] == "conversion":
            return self._beside(event, other)
        event["platform"] = event["platform"] and other["platform"]
        return event | {"event_time": other["event_time"] + self._distance(self._windows(other))}

    def _leading_to(self, event: Event, conversion: Event) -> Event:
        """A touch or a visit before a conversion; where journeys are followed, often on another platform than its own."""
        if event["event_type"] != "visit" and not (self.journeys and self.chance.randrange(2)):
            event["platform"] = conversion.get("platform") or event["platform"]
        return event | {"event_time": conversion["event_time"] - self._distance(self._windows(event))}

    def _adjusting(self, event: Event, conversion: Event) -> Event:
        if conversion.get("order_id") and "order_id" in event:
            event["order_id"] = conversion["order_id"]
        else:
            event["conversion_event_id"] = conversion["event_id"]
        edges_ms = [self.policy.bounds.adjustment_window_ms]
        return event | {"event_time": conversion["event_time"] + self._distance(edges_ms)}

    def _beside(self, event: Event, conversion: Event) -> Event:
        """Another report of an order; where journeys are followed, perhaps the next order, or what takes a cart up again."""
        edges_ms = [self.policy.bounds.order_window_ms]
        if self.journeys and self.chance.randrange(2):
            edges_ms = [self.journeys.customer_window_ms, self.journeys.abandon_after_ms - 1, self.journeys.window_ms]
        else:
            order_id = conversion.get("order_id") or event["order_id"]
            event |= {"conversion_name": conversion["conversion_name"], "order_id": order_id}
        return event | {"event_time": conversion["event_time"] + self._distance(edges_ms)}

    def _windows(self, event: Event) -> list[int]:
        """How long this touch may be credited, by version, and how long it or a visit stands in a journey."""
        rules = [version.platforms.get(event["platform"]) for version in self.policy.versions]
        kind, journey_ms = event["event_type"], [self.journeys.window_ms] if self.journeys else []
        return [rule.windows_ms[kind] for rule in rules if rule and kind in rule.windows_ms] + journey_ms

    def _distance(self, edges_ms: list[int]) -> int:
        near = [0, 1, MINUTE_MS, 2 * MINUTE_MS, 7 * MINUTE_MS, UNIT_MS // 2, -MINUTE_MS]
        return self.chance.choice([*near, *near, *edges_ms, *(edge_ms + 1 for edge_ms in edges_ms)])

    def _altered(self, event: Event) -> Event:
        """Another event with the identity of an earlier one, as a careless producer sends it."""
        earlier, _ = self.chance.choice(self.written)
        same = ("event_id", "event_type", "advertiser_id", "platform", "conversion_name")
        whole = event if event["event_type"] == earlier["event_type"] else earlier
        return whole | {name: earlier[name] for name in same if name in earlier}

    def _another_report(self) -> Event | None:
        """What the server, or the browser, says of a conversion that was reported before; mostly near enough to be merged."""
        others = [other for other, _ in self.written[-12:] if other["event_type"] == "conversion"]
        if not others:
            return None
        other = self.chance.choice(others)
        apart_ms = self.chance.choice([0, 0, 1, MINUTE_MS, 2 * MINUTE_MS, MERGE_MS, MERGE_MS, MERGE_MS + 1])
        said = self._conversion() | {"conversion_name": other["conversion_name"]}
        if self.chance.randrange(4):
            said["platform"] = other["platform"]
        event_time = other["event_time"] + self.chance.choice([-1, 1]) * apart_ms
        self.now_ms = max(self.now_ms, event_time)
        return other | said | {"event_time": event_time}

    def _keep_within_the_rules(self, event: Event) -> None:
        """Gives a conversion or an adjustment a new id where its old one would be judged by what is kept "at the least".

        An id that comes again is a duplicate while its first event is held; how long that is beyond the retention is left open.
        So is whether a repeat that came while it was held keeps the id from ANOTHER user for another dedup window.
        """
        if event["event_type"] not in ("conversion", "adjustment"):
            return
        # With and without its platform an event is one conversion, and over all platforms whichever it names.
        names = ("advertiser_id", "event_type", "conversion_name", "event_id")
        identity = tuple(event.get(name) for name in names)
        user, time_ms = self.first.setdefault(identity, (event["user_id"], event["event_time"]))
        is_noise = event.get("conversion_name") in NOISE and event["event_type"] == "conversion"
        apart_ms = abs(event["event_time"] - time_ms)
        same_user = user == event["user_id"]
        sound = (
            apart_ms <= self.longest_ms // 2
            if same_user
            else self.now_ms < time_ms + self.policy.bounds.dedup_window_ms
        )
        if (event["user_id"], event["event_time"]) != (user, time_ms) and (is_noise or not sound):
            event["event_id"] += f"+{len(self.arrivals)}"

    def _send(self, user_id: str, key: bytes | None, value: bytes | None) -> None:
        partition = int(owners(texts_of([user_id.encode()]), self.partitions, self.policy.bounds.partitioner)[0])
        if self.order is not Order.LOG and self.chance.randint(0, 3) == 0:
            partition = self.chance.randint(0, self.partitions - 1)
        topic = self.chance.randint(0, self.topics - 1) if self.topics > 1 else 0
        self.arrivals.append(Arrival(topic, partition, key, value, self.now_ms))


def make_world(chance: Random) -> World:
    """A world of a few or of 30 records."""
    order = chance.choice(list(Order))
    policy = make_policy(chance, 4 if order is Order.TAME else 1)
    partitions = chance.choice([1, 1, 2, 3])
    topics = 1 if order is Order.LOG else chance.randint(1, 2)
    scribe = _Scribe(chance, policy, partitions, topics, order)
    for _ in range(chance.choice([3, 30, 30, 30])):
        scribe.write()
    return World(policy, partitions, topics, tuple(scribe.arrivals), order)


def make_long_world(chance: Random) -> World:
    """A world of 70 records of one topic over more time than a rebuild reads, in which ids are used again after all of it."""
    policy = make_policy(chance)
    partitions = chance.choice([1, 1, 2])
    scribe = _Scribe(chance, policy, partitions, 1, Order.LOG)
    scribe.steps_ms = [0, 0, 0, MINUTE_MS, UNIT_MS, 2 * UNIT_MS]
    for _ in range(70):
        scribe.write()
    return World(policy, partitions, 1, tuple(scribe.arrivals), Order.LOG)


def _encode(event: Event) -> bytes:
    return json.dumps({name: value for name, value in event.items() if value is not None}, ensure_ascii=False).encode()
