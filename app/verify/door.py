"""Which events an owner partition lets in: docs/counting.md, sections 1 and 2, and what section 12 says of them."""

from typing import TypeAlias

from app.contract import reasons
from app.contract.events import Event
from app.policy.model import Bounds
from app.verify.records import Arrival, Coordinates

Identity: TypeAlias = tuple[str, ...]


def identity_of(event: Event) -> Identity:
    """(advertiser, platform or "", event_type, conversion_name or "", event_id): section 2."""
    return (event.advertiser_id, event.platform or "", event.event_type, event.conversion_name or "", event.event_id)


class Door:
    """One owner partition's events in processing order: each is refused, a duplicate, or new. `rejected`, `duplicates`: where
    those that are not new are noted.
    """

    def __init__(self, bounds: Bounds, rejected: dict[Coordinates, str], duplicates: set[Coordinates]) -> None:
        self.bounds, self.rejected, self.duplicates = bounds, rejected, duplicates
        self.stream_ms = 0
        # The stream time from which an identity is not remembered any more.
        self.unknown_from_ms: dict[Identity, int] = {}
        # By (advertiser, user): the conversions and adjustments that are held, with their times; and the forgets.
        self.held: dict[tuple[str, str], dict[Identity, int]] = {}
        self.forgotten_ms: dict[tuple[str, str], int] = {}

    def is_new(self, arrival: Arrival) -> bool:
        """Whether the event is accepted."""
        event, time_ms = arrival.event, arrival.time_ms
        if time_ms < self.stream_ms - self.bounds.correction_horizon_ms:
            self.rejected[arrival.found] = reasons.BEYOND_CORRECTION_HORIZON
            return False  # "such an event does not move the stream time"
        if event.event_type != "forget":
            self.stream_ms = max(self.stream_ms, time_ms)  # "repeats included", "including the one at hand"
        identity, who = identity_of(event), (event.advertiser_id, event.user_id)
        if self.stream_ms < self.unknown_from_ms.get(identity, -1) or identity in self.held.get(who, ()):
            self.duplicates.add(arrival.found)
            return False
        generation_ms = self.bounds.dedup_window_ms // 4  # "G = dedup_window / 4"
        expires_ms = (self.stream_ms // generation_ms + 1) * generation_ms + self.bounds.dedup_window_ms
        self.unknown_from_ms[identity] = expires_ms
        if event.event_type == "forget":
            self._forget(who, time_ms)
        elif event.event_type in ("conversion", "adjustment") and time_ms > self.forgotten_ms.get(who, -1):
            self.held.setdefault(who, {})[identity] = time_ms
        return True

    def _forget(self, who: tuple[str, str], until_ms: int) -> None:
        """Section 12: what is forgotten is held no more."""
        self.forgotten_ms[who] = until_ms = max(until_ms, self.forgotten_ms.get(who, -1))
        held = self.held.get(who, {})
        self.held[who] = {identity: time_ms for identity, time_ms in held.items() if time_ms > until_ms}
