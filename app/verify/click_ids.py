"""Section 13: the users of events that name a click id and no user, by the rows of `onecount.clicks` in their order; and
whether those rows are the ones that the raw topics call for.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec
import orjson

from app.contract.click_ids import click_key
from app.contract.events import Accepted, Event, judge_bytes
from app.policy.model import Bounds, ClickIds
from app.verify.partition import owner_of
from app.verify.records import Arrival, Coordinates, Record, show

TURNS = 16  # so many users of one click id are told apart on one platform

# A click as its row tells it: key, platform, user, time (epoch ms), event id.
Click: TypeAlias = tuple[bytes, str, str, int, str]


class ClickLog(NamedTuple):
    """The topic's records, in any order, and how many partitions it has."""

    records: Sequence[Record]
    partitions: int


@dataclass
class Matching:
    """What becomes of the events without a user, by their coordinates: those that were matched have one now; and the clicks
    that the rows tell of.
    """

    matched: dict[Coordinates, tuple[Record, Event, int]] = field(default_factory=dict)
    lost: set[Coordinates] = field(default_factory=set)
    waiting: set[Coordinates] = field(default_factory=set)
    clicks: Counter[Click] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def arrivals(self, partitions: int, partitioner: str) -> dict[Coordinates, tuple[Record, Arrival]]:
        """The events that found their user, each with its record, as their owners must get them."""
        return {
            coordinates: (
                record,
                Arrival(coordinates, event, time_ms, owner_of(event.user_id, partitions, partitioner)),
            )
            for coordinates, (record, event, time_ms) in self.matched.items()
        }


def is_copy(copy: Record, record: Record, arrival: Arrival, is_userless: bool) -> bool:
    """Whether a copy has what it must: its record's bytes, or, of an event that named no user, the same with its user."""
    if not is_userless:
        return copy.value == record.value
    same_time = copy.timestamp_ms == record.timestamp_ms
    return same_time and copy.key == arrival.event.user_id.encode() and judge_bytes(copy.value) == arrival.event


def key_of(event: Event) -> bytes:
    """The key of the rows of an event's click id."""
    return click_key(event.advertiser_id, event.click_id or "")


def match(log: ClickLog, userless: dict[Coordinates, tuple[Record, Accepted]], bounds: Bounds) -> Matching:
    """Follows every partition of the log."""
    assert bounds.click_ids is not None
    result = Matching()
    asked = Counter[Coordinates]()
    by_partition: dict[int, list[Record]] = defaultdict(list)
    for record in sorted(log.records, key=lambda each: each.offset):
        by_partition[record.partition].append(record)
    for records in by_partition.values():
        rows = _read(records, log.partitions, bounds.partitioner, userless, asked, result)
        _follow(rows, userless, bounds.click_ids, result)
    for coordinates, times in asked.items():
        if times > 1:
            result.faults.append(f"{show(coordinates)}: {times} rows ask for its user")
    for coordinates in userless.keys() - asked.keys():
        result.faults.append(f"{show(coordinates)}: names a click id and no user, and no row asks for its user")
    return result


def compare_clicks(must: Counter[Click], told: Counter[Click]) -> Iterable[str]:
    """A fault for every accepted click that has not exactly one row, and for every row of another click."""
    for click in sorted(must.keys() | told.keys()):
        if must[click] != told[click]:
            yield f"the click {click[4]!r} of {click[0].decode()} has {told[click]} rows that tell whose it is, and must have {must[click]}"


def _read(
    records: Iterable[Record],
    partitions: int,
    partitioner: str,
    userless: dict[Coordinates, tuple[Record, Accepted]],
    asked: Counter[Coordinates],
    result: Matching,
) -> Iterable[Click | Coordinates]:
    """The rows of one partition: clicks, and where the events lie that ask."""
    for record in records:
        try:
            kind, *fields = orjson.loads(record.value or b"")
        except (orjson.JSONDecodeError, TypeError, ValueError):
            result.faults.append(f"{show(record.coordinates)}: is no row")
            continue
        key = record.key or b""
        if record.partition != owner_of(key.decode(), partitions, partitioner):
            result.faults.append(f"{show(record.coordinates)}: lies on another partition than its click id's")
        if kind == "click":
            platform, user_id, time_ms, event_id = fields
            click = (key, platform, user_id, time_ms, event_id)
            result.clicks[click] += 1
            yield click
            continue
        source: Coordinates = (fields[2], fields[3], fields[4])
        asked[source] += 1
        if source not in userless:
            result.faults.append(
                f"{show(record.coordinates)}: asks for {show(source)}, which is no event without a user"
            )
        elif asked[source] == 1:
            found, accepted = userless[source]
            if key != key_of(accepted.event) or fields[7].encode() != found.value:
                result.faults.append(f"{show(record.coordinates)}: is not the event {show(source)}")
            yield source


def _follow(
    rows: Iterable[Click | Coordinates],
    userless: dict[Coordinates, tuple[Record, Accepted]],
    click_ids: ClickIds,
    result: Matching,
) -> None:
    """One partition's rows, in their order."""
    stream_ms = 0
    # by key and platform: (user, time) of each click that is known for longer than all before it
    owners: dict[bytes, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    waiting: dict[Coordinates, tuple[bytes, int]] = {}  # the key, and until when (epoch ms)

    def knows(time_ms: int) -> bool:
        return stream_ms < time_ms + click_ids.known_for_ms

    def find(coordinates: Coordinates, key: bytes) -> bool:
        record, (event, time_ms) = userless[coordinates]
        for platform in sorted(owners[key]):
            users = [user_id for user_id, known_ms in owners[key][platform] if knows(known_ms)]
            if users and event.platform in (None, platform):
                fields = msgspec.structs.asdict(event) | {"user_id": users[0]}
                result.matched[coordinates] = (record, Event(**fields), time_ms)
                return True
        return False

    for row in rows:
        asks = row if len(row) == 3 else None
        time_ms = userless[asks][1].time_ms if asks else row[3]  # type: ignore[misc]
        stream_ms = max(stream_ms, time_ms)
        late = {each for each, (_, until_ms) in waiting.items() if until_ms <= stream_ms}
        result.lost |= late
        waiting = {each: about for each, about in waiting.items() if each not in late} if late else waiting
        if asks:
            key, until_ms = key_of(userless[asks][1].event), time_ms + click_ids.park_for_ms
            if find(asks, key):
                continue
            if until_ms <= stream_ms:
                result.lost.add(asks)
            else:
                waiting[asks] = (key, until_ms)
            continue
        key, platform, user_id, _, _ = row  # type: ignore[misc]
        if not knows(time_ms):
            continue
        turns = [turn for turn in owners[key][platform] if knows(turn[1])]
        if not turns or time_ms > turns[-1][1]:
            if turns and (turns[-1][0] == user_id or len(turns) == TURNS):
                del turns[-1]
            turns.append((user_id, time_ms))
        owners[key][platform] = turns
        found = {each for each, (of, _) in waiting.items() if of == key and find(each, key)}
        waiting = {each: about for each, about in waiting.items() if each not in found} if found else waiting
    result.waiting |= waiting.keys()
