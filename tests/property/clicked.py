"""Worlds in which clicks have ids, and some conversions and adjustments name a click id and no user.

Made of the other worlds: clicks get one of a few ids, so that users share some; of the conversions and adjustments some lose
their user. Those get event ids of their own, as ids that come again with another user are a matter that the rules leave open.
"""

import json
from dataclasses import replace
from random import Random
from typing import Any, Final

import msgspec

from app.policy.model import ClickIds
from tests.property.policies import UNIT_MS
from tests.property.worlds import Arrival, Order, World, make_world

IDS: Final = ("k1", "k2", "k3", 'k"\u00e9')


def make_clicked_world(chance: Random) -> World:
    """A world of click ids. Each matched event comes by another topic than its user's; the deltas tell a counter that lost its
    state in which order it was folded.
    """
    world = make_world(chance)
    while world.order is Order.TAME:
        world = make_world(chance)
    bounds = world.policy.bounds
    park_for_ms = chance.choice([1, UNIT_MS, 2 * UNIT_MS, 7 * UNIT_MS])
    click_ids = ClickIds(park_for_ms, chance.choice([UNIT_MS, 4 * UNIT_MS, 100 * UNIT_MS]))
    policy = msgspec.structs.replace(world.policy, bounds=msgspec.structs.replace(bounds, click_ids=click_ids))
    writer = _Writer(chance, world)
    return replace(world, policy=policy, arrivals=tuple(map(writer.rewrite, world.arrivals)))


class _Writer:
    """Rewrites the events of one world."""

    def __init__(self, chance: Random, world: World) -> None:
        self.chance, self.world = chance, world
        self.ids = chance.sample(IDS, chance.choice([1, 2, 4]))
        self.share = chance.choice([0.3, 0.8])  # of the conversions and adjustments
        self.rewritten: dict[bytes, tuple[int, Arrival]] = {}
        self.renamed: dict[str, str] = {}
        self.count = 0

    def rewrite(self, arrival: Arrival) -> Arrival:
        """A record as it arrives here; a repeat of one that was rewritten lately is a repeat again."""
        raw = arrival.value or b""
        came_ms, before = self.rewritten.get(raw, (0, None))
        if before is not None and arrival.timestamp_ms - came_ms < self.world.policy.bounds.dedup_window_ms // 2:
            return replace(before, timestamp_ms=arrival.timestamp_ms)
        try:
            event = json.loads(raw)
            kind = event["event_type"]
        except (ValueError, TypeError, KeyError):
            return arrival
        self.count += 1
        if kind == "click":
            event["click_id"] = self.chance.choice([*self.ids, *self.ids, "", None])
        elif kind in ("conversion", "adjustment") and self.chance.random() < self.share:
            return self._without_user(arrival, event)
        return replace(arrival, value=_encode(event))

    def _without_user(self, arrival: Arrival, event: dict[str, Any]) -> Arrival:
        if self.chance.randrange(2):
            del event["user_id"]
        else:
            event["user_id"] = None
        event["click_id"] = self.chance.choice([*self.ids, *self.ids, *self.ids, "unheard of", ""])
        event["more"] = {"numbers": [1e3, None]}
        if event["event_type"] == "conversion" and self.chance.randrange(3):
            event.pop("platform", None)
        named = event.get("conversion_event_id")
        if named in self.renamed and self.chance.randrange(4):
            event["conversion_event_id"] = self.renamed[named]
        name = f"{event['event_id'][:100]}~{self.count}"
        self.renamed[event["event_id"]] = event["event_id"] = name
        key = self.chance.choice([None, event["click_id"].encode(), b"any"])
        is_mixed = self.world.order is Order.MIXED
        partition = self.chance.randrange(self.world.partitions) if is_mixed else arrival.partition
        rewritten = replace(arrival, key=key, value=_encode(event), partition=partition)
        self.rewritten[arrival.value or b""] = arrival.timestamp_ms, rewritten
        return rewritten


def _encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()
