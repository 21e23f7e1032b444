"""From record to the partition that processes its event: docs/counting.md, sections 1 and 13.

`judge` looks at the raw records of some partitions; `route` at all that belongs elsewhere, and at the copies that bring it there.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from app.contract.events import Accepted, Rejection, decode_event
from app.formats.opening import Body, Formats
from app.policy.model import Policy
from app.verify.click_ids import Click, ClickLog, is_copy, match
from app.verify.partition import owner_of
from app.verify.records import Arrival, Coordinates, Record, show
from app.verify.sequence import Streams

AT_A_TIME: Final = 10_000  # records that are read of another format at once


@dataclass
class Judged:
    """The raw records of some partitions. `streams`: every one of them, with its event where that is at home on its partition.
    `abroad` and `userless`, by coordinates: the events that are not, and those that name no user. `rejected`: why.
    """

    produced: int = 0
    streams: Streams = field(default_factory=dict)
    abroad: dict[Coordinates, tuple[Record, Arrival]] = field(default_factory=dict)
    userless: dict[Coordinates, tuple[Record, Accepted]] = field(default_factory=dict)
    rejected: dict[Coordinates, str] = field(default_factory=dict)


@dataclass
class Routed:
    """What owners get of other partitions: by owner, as streams of their own. `owners`: who gets which event, by coordinates.

    `lost`: the events that found no user; `matched` and `waiting`: how many did, and still may. `told_clicks`: what the topic of
    clicks tells. `faults`: what is wrong with copies and rows of clicks.
    """

    streams: dict[int, Streams] = field(default_factory=dict)
    owners: dict[Coordinates, int] = field(default_factory=dict)
    lost: set[Coordinates] = field(default_factory=set)
    matched: int = 0
    waiting: int = 0
    told_clicks: dict[Click, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, owner: int, record: Record, arrival: Arrival | None) -> None:
        """Gives an owner the next record of a stream."""
        self.streams.setdefault(owner, {}).setdefault((record.topic, record.partition), []).append((record, arrival))

    def of(self, owners: Collection[int]) -> "Routed":
        """What these owners must know of it."""
        streams = {owner: found for owner, found in self.streams.items() if owner in owners}
        return Routed(streams, self.owners, self.lost)


def judge(raw: list[Record], policy: Policy, partitions: int, formats: Formats | None) -> Judged:
    """Judges raw records, which may come in any order, as the contract has it."""
    result = Judged(produced=len(raw))
    bounds, platforms = policy.bounds, policy.platforms()
    owners: dict[str, int] = {}  # users come again and again, and the hash is slow
    raw.sort(key=lambda record: record.coordinates)
    for record, body in opened(raw, formats):
        judged = (
            body
            if isinstance(body, Rejection)
            else decode_event(
                *(body, record.key, record.timestamp_ms, platforms),
                *(bounds.max_event_age_ms, bounds.max_clock_skew_ms, bounds.click_ids is not None),
            )
        )
        at_home = None
        if isinstance(judged, Rejection):
            result.rejected[record.coordinates] = judged.reason
        elif judged.event.user_id is None:
            assert not isinstance(body, Rejection)
            result.userless[record.coordinates] = (msgspec.structs.replace(record, value=body), judged)
        else:
            user_id = judged.event.user_id
            if user_id not in owners:
                owners[user_id] = owner_of(user_id, partitions, bounds.partitioner)
            arrival = Arrival(record.coordinates, judged.event, judged.time_ms, owners[user_id])
            if arrival.owner == record.partition:
                at_home = arrival
            else:
                result.abroad[record.coordinates] = (record, arrival)
        # What is refused or foreign stays as a step without an event, for a batch must have taken it too.
        result.streams.setdefault((record.topic, record.partition), []).append((record, at_home))
    return result


def opened(records: Sequence[Record], formats: Formats | None) -> Iterator[tuple[Record, Body]]:
    """Each record with its event's JSON, or why there is none."""
    if formats is None:
        yield from ((record, record.value) for record in records)
        return
    for first in range(0, len(records), AT_A_TIME):
        some = records[first : first + AT_A_TIME]
        columns = [[getattr(each, name) for each in some] for name in ("value", "headers", "timestamp_ms")]
        yield from zip(some, formats.open_all(*columns), strict=True)


def route(
    abroad: dict[Coordinates, tuple[Record, Arrival]],
    userless: dict[Coordinates, tuple[Record, Accepted]],
    copies: Iterable[Record],
    policy: Policy,
    partitions: int,
    rekeyed_topic: str | None,
    clicks: ClickLog | None,
) -> Routed:
    """Brings all events that are not at home to their owners, by the copies where `rekeyed_topic` names their topic. `clicks`:
    what tells whose click is whose, where the policy has `click_ids`.
    """
    result = Routed()
    waiting = dict(abroad)
    if clicks is not None:
        found = match(clicks, userless, policy.bounds)
        waiting |= found.arrivals(partitions, policy.bounds.partitioner)
        result.faults += found.faults
        result.lost, result.matched, result.waiting = found.lost, len(found.matched), len(found.waiting)
        result.told_clicks = found.clicks
    result.owners = {coordinates: arrival.owner for coordinates, (_, arrival) in waiting.items()}
    for copy in sorted(copies, key=lambda record: record.coordinates):
        arrival = _claim(copy, waiting, userless, result.faults)
        result.add(copy.partition, copy, arrival)
    for coordinates, (record, arrival) in waiting.items():
        if rekeyed_topic is not None:
            result.faults.append(
                f"{show(coordinates)}: belongs on partition {arrival.owner}, and has no copy in {rekeyed_topic}"
            )
        result.add(arrival.owner, record, arrival)
    return result


def _claim(
    copy: Record,
    waiting: dict[Coordinates, tuple[Record, Arrival]],
    userless: dict[Coordinates, tuple[Record, Accepted]],
    faults: list[str],
) -> Arrival | None:
    """Takes the event that `copy` brings to its owner out of `waiting`; None, and a fault, if there is none."""
    found = None if copy.source is None else waiting.pop(copy.source, None)
    if found is None:
        source = "no record" if copy.source is None else show(copy.source)
        faults.append(
            f"{show(copy.coordinates)}: copies {source}, which is not an accepted foreign event or was copied before"
        )
        return None
    record, arrival = found
    if copy.partition != arrival.owner or not is_copy(copy, record, arrival, record.coordinates in userless):
        faults.append(
            f"{show(copy.coordinates)}: is not {show(arrival.found)}, or not on its owner's partition {arrival.owner}"
        )
    return arrival
