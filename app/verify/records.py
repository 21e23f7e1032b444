"""The plain data that the oracle works on: records as Kafka holds them, accepted events, and what one user did."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from app.contract.events import Event
from app.formats.cloudevents import Headers

# Where a record lies: topic, partition, offset.
Coordinates: TypeAlias = tuple[str, int, int]
# The batches that were committed for each owner partition, in their order: the offsets [from, to) of each input topic,
# `onecount.rekeyed` included, on the partition of that number.
Order: TypeAlias = Mapping[int, Sequence[Mapping[str, tuple[int, int]]]]

SOURCE_HEADER: Final = "onecount-source"


class VerifyError(Exception):
    """The topics cannot be verified; the message says why and what to do."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of an input topic. `source`: of a re-keyed copy, where the event was found; None for a raw record, whose
    `headers` may be part of the event.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    source: Coordinates | None = None
    headers: Headers = None

    @property
    def coordinates(self) -> Coordinates:
        """Where the record lies."""
        return (self.topic, self.partition, self.offset)


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """An event that keeps the contract: where it was found, its time (epoch ms), the partition that owns its user."""

    found: Coordinates
    event: Event
    time_ms: int
    owner: int

    @property
    def time_and_id(self) -> tuple[int, str]:
        """The order in which the rules speak of conversions and adjustments; ids compare by code point."""
        return (self.time_ms, self.event.event_id)


class Person(msgspec.Struct):
    """Everything accepted of one (advertiser, user), in processing order: by kind, and in `history` all of it but visits,
    which no adjustment hangs on. `reports`: the duplicates that tell more of one of the conversions (section 14).

    Forgotten up to and including `forgotten_ms` (section 12): what is not later is in `history` only, and only if it came
    before the forget.
    """

    history: list[Arrival] = msgspec.field(default_factory=list)
    touches: list[Arrival] = msgspec.field(default_factory=list)
    conversions: list[Arrival] = msgspec.field(default_factory=list)
    adjustments: list[Arrival] = msgspec.field(default_factory=list)
    reports: list[Arrival] = msgspec.field(default_factory=list)
    visits: list[Arrival] = msgspec.field(default_factory=list)
    forgotten_ms: int = -1

    def add(self, arrival: Arrival) -> bool:
        """Takes in one accepted event; False, and it is left out, if it is of a time that is forgotten."""
        kind = arrival.event.event_type
        if kind == "forget":
            self.history.append(arrival)
            self._forget(arrival.time_ms)
            return True
        if arrival.time_ms <= self.forgotten_ms:
            return False
        if kind == "visit":
            self.visits.append(arrival)
            return True
        self.history.append(arrival)
        lists = {"conversion": self.conversions, "adjustment": self.adjustments}
        lists.get(kind, self.touches).append(arrival)
        return True

    def _forget(self, until_ms: int) -> None:
        self.forgotten_ms = max(self.forgotten_ms, until_ms)
        for events in (self.touches, self.conversions, self.adjustments, self.reports, self.visits):
            events[:] = [each for each in events if each.time_ms > self.forgotten_ms]
        left = {name_of(each) for each in self.conversions}
        self.reports = [each for each in self.reports if name_of(each) in left]


def name_of(conversion: Arrival) -> tuple[str, str | None, str]:
    """What makes two conversion events of one person repeats of each other."""
    event = conversion.event
    return (event.platform or "", event.conversion_name, event.event_id)


def show(coordinates: Coordinates) -> str:
    """topic/partition/offset, for a person."""
    return "/".join(str(part) for part in coordinates)


def parse_source(header: bytes) -> Coordinates:
    """The coordinates in a copy's `onecount-source` header, b"topic/partition/offset"; ValueError for another form."""
    topic, partition, offset = header.decode().rsplit("/", 2)
    return (topic, int(partition), int(offset))
