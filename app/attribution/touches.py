"""The touches of one partition that a conversion may still be credited to, as packed records in Redis strings.

A record is fixed-size: the time, the event id, a 64-bit code for each kept attribute, and the user's hash. Records of one
*segment* are a table `{tag}:touch:<kind>:<segment>:<width>`: a segment is a span of event time that expires as a whole, and
the width class fits the event id, so that ids of any length compare exactly. Names stand behind their codes in the hashes
`{tag}:names:<slot>`.
"""

from collections.abc import Iterable
from functools import cache
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from app.attribution.state import Touch
from app.columns.table import (
    HASH,
    TIME,
    Command,
    Latest,
    Lookup,
    Runner,
    StateDamaged,
    Table,
    Turn,
    among,
    distinct,
    record_type,
)
from app.columns.texts import Coded, KnownCodes, Texts, hash64, padded, stir, texts_of
from app.contract.events import TOUCH_TYPES
from app.policy.model import DAY_MS, Policy

ID_WIDTHS: Final = (16, 40, 512)  # a short id, a UUID, and 128 characters of UTF-8
SEGMENTS_PER_WINDOW: Final = 4
SPAN_MAX_MS: Final = 45 * DAY_MS  # a record's time is its segment's start and 32 bits
NEW_MAX: Final = 1 << 16  # records of a partition that are in no run yet, over all segments
MAX_CACHED_NAMES: Final = 1_000_000
_NULL_CODE: Final = 0
_NOBODY: Final = np.empty(0, dtype=np.uint64)
_FIRST_MS, _LAST_MS = np.int64(-1), np.int64(2**62)  # before and after all times
_PLATFORM: Final = np.uint64(0x9E3779B97F4A7C15)  # an advertiser may be called as a platform is, and is added too

SegmentKey = tuple[str, int, int]  # kind, segment, id width


class Batch(NamedTuple):
    """Storable touches of one partition in one batch: aligned columns. `users` are the hashes of (advertiser, user,
    platform).
    """

    kinds: np.ndarray  # places in the store's kinds
    users: np.ndarray
    times_ms: np.ndarray
    event_ids: Texts
    attributes: list[Coded]  # one column per kept attribute


class Wanted(NamedTuple):
    """What to ask Redis for touches: the commands of each segment's lookup."""

    commands: list[Command]
    lookups: list[tuple[SegmentKey, Lookup]]


class _Seekers(NamedTuple):
    """Whose touches of one kind are sought: user hashes (uint64, sorted, each once), the times (ms) of their first and their last
    conversion, and since when (ms) a touch can be the latest before each of them.
    """

    hashes: np.ndarray
    first_ms: np.ndarray
    last_ms: np.ndarray
    since_ms: np.ndarray

    @staticmethod
    def of(users: np.ndarray, times_ms: np.ndarray, whole: np.ndarray) -> "_Seekers":
        """Of aligned columns; all that is stored of `whole` is before a last conversion, and no later one spares it."""
        owners = np.concatenate([users, whole, whole])
        all_ms = np.concatenate([times_ms, np.full(len(whole), _FIRST_MS), np.full(len(whole), _LAST_MS)])
        order = np.lexsort((all_ms, owners))
        owners, all_ms = owners[order], all_ms[order]
        begins = np.flatnonzero(np.append(np.ones(len(owners[:1]), dtype=bool), owners[1:] != owners[:-1]))
        ends = np.append(begins[1:], len(owners))[: len(begins)] - 1
        return _Seekers(owners[begins], all_ms[begins], all_ms[ends], np.full(len(begins), _FIRST_MS))


@cache
def touch_record(width: int, attributes: int) -> np.dtype[Any]:
    """The layout of a record with event ids of `width` bytes and so many attribute codes; `time` in ms after the segment's
    start.
    """
    return record_type([(TIME, "<u4"), ("id", f"S{width}"), *((f"code{at}", "<u8") for at in range(attributes))])


def platform_salts(codes: np.ndarray) -> np.ndarray:
    """What a platform (by its name's code) adds to a user's hash, so that a touch record's user is one on one platform."""
    return stir(codes ^ _PLATFORM)


@cache
def platform_salt(name: str) -> int:
    """The salt of one platform."""
    return int(platform_salts(hash64(texts_of([name.encode()])))[0])


class Touches:
    """The touches of one partition: what is live, and how to write, find and forget it. Times are epoch ms.

    `first_ms` is how far back (ms) each kind was looked at under the policy's first version: a later version must find what
    was stored under that one. `dictionary` names the hashes of names; `turn`: as of a table.
    """

    def __init__(
        self,
        tag: str,
        lookback_ms: dict[str, int],
        first_ms: dict[str, int],
        horizon_ms: int,
        width: int,
        dictionary: str = "names",
        turn: Turn | None = None,
    ) -> None:
        self.tag = tag
        self.horizon_ms = horizon_ms
        self.kinds = tuple(lookback_ms)
        self.lookback_ms = lookback_ms
        self.span_ms = {
            kind: min(max(DAY_MS, window_ms // SEGMENTS_PER_WINDOW), SPAN_MAX_MS)
            for kind, window_ms in first_ms.items()
        }
        self.slot_ms = max(self.lookback_ms.values()) + self.horizon_ms + max(self.span_ms.values())
        self.width = width
        self.dictionary = dictionary
        self._turn = turn
        self.segments: dict[SegmentKey, Table] = {}
        self.slots: set[int] = set()
        self._written = -1, KnownCodes()  # the codes whose names this slot of stream time holds
        self._names: dict[int, str | None] = {_NULL_CODE: None}

    def load(self, segment: SegmentKey, count: int, run: Runner) -> None:
        """Reads a live segment of so many records back after this process took the partition over. Raises `StateDamaged`."""
        self._table(segment).load(count, run)

    def _table(self, segment: SegmentKey) -> Table:
        if segment not in self.segments:
            kind, number, width = segment
            key = f"{{{self.tag}}}:touch:{kind}:{number}:{width}"
            self.segments[segment] = Table(key, touch_record(width, self.width), self._turn)
        return self.segments[segment]

    def names_key(self, slot: int) -> str:
        """The Redis key of the dictionary for touches stored in this slot of stream time."""
        return f"{{{self.tag}}}:{self.dictionary}:{slot}"

    def encode(self, batch: Batch, stream_ms: int) -> tuple[dict[SegmentKey, np.ndarray], list[Command]]:
        """A batch's touches as records by segment, and the HSET of the names that are new to the slot of `stream_ms`."""
        widths = np.searchsorted(ID_WIDTHS, batch.event_ids.lengths)
        spans = np.array([self.span_ms[kind] for kind in self.kinds], dtype=np.int64)[batch.kinds]
        segments = batch.times_ms // spans
        keys = (segments * len(self.kinds) + batch.kinds) * len(ID_WIDTHS) + widths
        records: dict[SegmentKey, np.ndarray] = {}
        for key in distinct(keys).tolist():
            rows = np.flatnonzero(keys == key)
            kind, number, width = int(batch.kinds[rows[0]]), int(segments[rows[0]]), ID_WIDTHS[key % len(ID_WIDTHS)]
            packed = np.empty(len(rows), dtype=touch_record(width, self.width))
            packed[HASH], packed[TIME] = batch.users[rows], batch.times_ms[rows] - number * int(spans[rows[0]])
            packed["id"] = padded(batch.event_ids.take(rows), width)
            for position, column in enumerate(batch.attributes):
                packed[f"code{position}"] = column.codes[rows]
            records[self.kinds[kind], number, width] = packed
        return records, self._new_names(batch.attributes, stream_ms // self.slot_ms)

    def _new_names(self, columns: list[Coded], slot: int) -> list[Command]:
        if self._written[0] != slot or len(self._written[1]) > MAX_CACHED_NAMES:
            self._written = slot, KnownCodes()
        if len(self._names) > MAX_CACHED_NAMES:
            self._names = {_NULL_CODE: None}
        command: list[Any] = ["HSET", self.names_key(slot)]
        for column in columns:
            for row in self._written[1].meet(column.codes):
                code, name = int(column.codes[row]), column.texts.at(row) or ""
                if self._names.setdefault(code, name) != name:
                    raise StateDamaged(f"two names share the code {code}: {name!r} and {self._names[code]!r}")
                command += [code, name]
        if len(command) == 2:
            return []
        self.slots.add(slot)
        return [tuple(command)]

    def store(self, records: dict[SegmentKey, np.ndarray]) -> list[Command]:
        """The commands that store a batch's records."""
        nothing = np.empty(0)
        for segment in records:
            self._table(segment)
        commands = [
            command
            for segment, table in self.segments.items()
            for command in table.write(records.get(segment, nothing))
        ]
        while sum(table.new_count for table in self.segments.values()) > NEW_MAX:
            largest = max(self.segments.values(), key=lambda table: table.new_count)
            commands += largest.write(nothing, flush=True)
        return commands

    def wanted(self, asked: dict[str, tuple[np.ndarray, np.ndarray]], whole: np.ndarray) -> Wanted:
        """The commands that read what holds the latest touch before a conversion, by kind for user hashes (uint64) and conversion
        times (ms), where that may be eligible; and everything that is stored of the user hashes in `whole`.
        """
        wanted = Wanted([], [])
        seekers = {
            kind: _Seekers.of(*asked.get(kind, (_NOBODY, _NOBODY.astype(np.int64))), whole) for kind in self.kinds
        }
        for segment in sorted(self.segments, key=itemgetter(1), reverse=True):  # the latest first
            kind, number, _ = segment
            start_ms = number * self.span_ms[kind]
            end_ms = start_ms + self.span_ms[kind]
            hashes, first_ms, last_ms, since_ms = seekers[kind]
            rows = np.flatnonzero(
                (start_ms < last_ms) & (first_ms < end_ms + self.lookback_ms[kind]) & (since_ms < end_ms)
            )
            latest = Latest(first_ms[rows] - start_ms, since_ms[rows] - start_ms)
            lookup = self.segments[segment].lookup(hashes[rows], latest)
            since_ms[rows] = latest.since + start_ms
            wanted.lookups.append((segment, lookup))
            wanted.commands.extend(lookup.commands)
        return wanted

    def wanted_whole(self, users: np.ndarray) -> Wanted:
        """The commands that read everything that is stored of some user hashes."""
        wanted = Wanted([], [])
        for segment, table in self.segments.items():
            lookup = table.lookup(users)
            wanted.lookups.append((segment, lookup))
            wanted.commands.extend(lookup.commands)
        return wanted

    def read(
        self,
        wanted: Wanted,
        replies: list[bytes],
        records: dict[SegmentKey, np.ndarray],
        users: np.ndarray,
        run: Runner,
    ) -> list[tuple[SegmentKey, np.ndarray]]:
        """The stored records of the wanted users, and this batch's of `users` (sorted hashes), by segment. Raises
        `StateDamaged`.
        """
        parts = self._stored(wanted, replies)
        mistaken = distinct(
            np.concatenate([_NOBODY, *(each for _, lookup in wanted.lookups for each in lookup.mistaken)])
        )
        if len(mistaken):
            again = self.wanted_whole(mistaken)
            parts = [(segment, found[~among(found[HASH], mistaken)]) for segment, found in parts]
            parts += self._stored(again, run(again.commands))
        # after the stored ones, so that equal records stay in order of acceptance
        return parts + [(segment, packed[among(packed[HASH], users)]) for segment, packed in records.items()]

    def _stored(self, wanted: Wanted, replies: list[bytes]) -> list[tuple[SegmentKey, np.ndarray]]:
        parts: list[tuple[SegmentKey, np.ndarray]] = []
        at = 0
        for segment, lookup in wanted.lookups:
            found = self.segments[segment].found(lookup, replies[at : at + len(lookup.commands)])
            at += len(lookup.commands)
            parts.append((segment, found))
        return parts

    def unknown_codes(self, found: Iterable["Found"]) -> list[int]:
        """The codes among the records whose names this process has not read yet."""
        return list({code for each in found for code in each.codes if code not in self._names})

    def names_commands(self, codes: list[int]) -> list[Command]:
        """Reads names for `learn`; every live slot is asked."""
        return [("HMGET", self.names_key(slot), *codes) for slot in sorted(self.slots)] if codes else []

    def learn(self, codes: list[int], replies: list[list[bytes | None]]) -> None:
        """Takes names that were read from the dictionary."""
        for names in replies:
            for code, name in zip(codes, names, strict=True):
                if name is not None:
                    self._names[code] = name.decode()

    def touch(self, found: "Found") -> Touch:
        """A record as a `Touch`. Raises `StateDamaged` where the dictionary lacks one of its codes."""
        try:
            attributes = tuple([self._names[code] for code in found.codes])
        except KeyError as error:
            raise StateDamaged(f"partition {self.tag}: no name for code {error}; run `onecount rebuild`") from error
        return Touch(found.kind, found.time_ms, found.event_id.decode(), attributes)

    def expire(self, stream_ms: int) -> list[Command]:
        """Forgets the segments and dictionaries that no conversion can reach any more; the UNLINKs that free them."""
        ended = {
            segment
            for segment in self.segments
            if stream_ms >= (segment[1] + 1) * self.span_ms[segment[0]] + self.lookback_ms[segment[0]] + self.horizon_ms
        }
        commands: list[Command] = [("UNLINK", *self.segments.pop(segment).redis_keys()) for segment in sorted(ended)]
        old = {slot for slot in self.slots if stream_ms >= (slot + 2) * self.slot_ms}
        self.slots -= old
        return commands + [("UNLINK", self.names_key(slot)) for slot in sorted(old)]


def touches_of(tag: str, policy: Policy, turn: Turn | None = None) -> Touches:
    """The store of a partition's views, clicks and engaged views."""
    bounds, first = policy.bounds, Policy(policy.bounds, policy.versions[:1])
    lookback_ms, first_ms = ({kind: each.lookback_ms(kind) for kind in TOUCH_TYPES} for each in (policy, first))
    return Touches(tag, lookback_ms, first_ms, bounds.correction_horizon_ms, len(bounds.keep), turn=turn)


def visits_of(tag: str, policy: Policy, turn: Turn | None = None) -> Touches | None:
    """The store of a partition's visits, each with its page and referrer; None where the policy follows no journeys."""
    journeys = policy.bounds.journeys
    if journeys is None:
        return None
    window_ms = {"visit": journeys.window_ms}
    return Touches(tag, window_ms, window_ms, policy.bounds.correction_horizon_ms, 2, "pages", turn)


class Found(NamedTuple):
    """A touch record that a conversion may be credited to."""

    kind: str
    time_ms: int
    event_id: bytes
    codes: tuple[int, ...]


class Pool:
    """Touch records of the users at hand, searched for the latest before a conversion."""

    def __init__(self, parts: list[tuple[SegmentKey, np.ndarray]], span_ms: dict[str, int]) -> None:
        self._parts = [(segment, records) for segment, records in parts if len(records)]
        self._span_ms = span_ms

    def best(self, kind: str, users: np.ndarray, times_ms: np.ndarray) -> "list[Found | None]":
        """For each user hash and time (aligned; ms): the record of this kind with the largest (time, event id) strictly
        before it, of equal ones the first accepted; None if there is none.
        """
        parts = [(segment, records) for segment, records in self._parts if segment[0] == kind]
        if not parts:
            return [None] * len(users)
        starts_ms = [segment[1] * self._span_ms[kind] for segment, _ in parts]
        held_ms = [
            start_ms + records[TIME].astype(np.int64) for start_ms, (_, records) in zip(starts_ms, parts, strict=True)
        ]
        owners = np.concatenate([*(records[HASH] for _, records in parts), users])
        all_ms = np.concatenate([*held_ms, times_ms])
        count = len(owners) - len(users)
        # by user and time, whoever asks before what is held of that time; equal records stay in order of acceptance
        order = np.lexsort((np.arange(len(owners)) < count, all_ms, owners))
        owners, sorted_ms, is_held = owners[order], all_ms[order], order < count
        last = np.empty(len(users), dtype=np.int64)  # for who asks, the place of the last record up to him; -1: none
        last[order[~is_held] - count] = np.maximum.accumulate(np.where(is_held, np.arange(len(order)), -1))[~is_held]
        asking = np.flatnonzero((last >= 0) & (owners[last] == users))
        last = first = last[asking]
        is_equal = np.append(False, (owners[1:] == owners[:-1]) & (sorted_ms[1:] == sorted_ms[:-1]) & is_held[:-1])
        while is_equal[first].any():
            first = first - is_equal[first]
        counts = last - first + 1
        rows = iter(_rows(parts, order[np.repeat(last + 1 - np.cumsum(counts), counts) + np.arange(counts.sum())]))
        found: list[Found | None] = [None] * len(users)
        for place, equal, time_ms in zip(asking.tolist(), counts.tolist(), sorted_ms[last].tolist(), strict=True):
            # the first of the largest event id: a touch that came again after its id was forgotten stands twice
            best = next(rows) if equal == 1 else max(islice(rows, equal), key=itemgetter(1))
            found[place] = Found(kind, time_ms, best[1], best[2:-1])
        return found


def _rows(parts: list[tuple[SegmentKey, np.ndarray]], places: np.ndarray) -> list[tuple[Any, ...]]:
    """The records at some places of all parts one behind the other."""
    ends = np.cumsum([len(records) for _, records in parts])
    origins = ends.searchsorted(places, side="right")
    found: list[tuple[Any, ...]] = [()] * len(places)
    for origin, (_, records) in enumerate(parts):
        mine = np.flatnonzero(origins == origin)
        rows = records[places[mine] - (ends[origin] - len(records))].tolist()
        for place, row in zip(mine.tolist(), rows, strict=True):
            found[place] = row
    return found
