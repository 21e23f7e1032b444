"""The touches of one partition that a conversion may still be credited to, as packed records in Redis strings.

A record is fixed-size: the user's hash, the time, the event id, and a 64-bit code for each kept attribute. Records are
appended to
`{tag}:touch:<kind>:<segment>:<width>:<bucket>`: a segment is a span of event time that expires as a whole, the width
class fits the event id, so that ids of any length compare exactly, and a bucket gathers the users whose hash ends
alike. One APPEND per bucket writes a batch, one MGET reads what the converting users need. Names stand behind their
codes in the hashes `{tag}:names:<slot>`.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from app.attribution.state import Touch
from app.columns.texts import Coded, Texts, hash64, stir, texts_of
from app.contract.events import TOUCH_TYPES
from app.policy.model import DAY_MS, Policy

BUCKETS: Final = 512
ID_WIDTHS: Final = (16, 40, 512)  # a short id, a UUID, and 128 characters of UTF-8
SEGMENTS_PER_WINDOW: Final = 4
MAX_CACHED_NAMES: Final = 1_000_000
_NULL_CODE: Final = 0
_PLATFORM: Final = np.uint64(0x9E3779B97F4A7C15)  # an advertiser may be called as a platform is, and is added too

Command = tuple[Any, ...]
SegmentKey = tuple[str, int, int]  # kind, segment, id width


class UnknownName(Exception):
    """A touch names a code that the dictionary lacks: the state in Redis is damaged and must be rebuilt."""


class Batch(NamedTuple):
    """Storable touches of one partition in one batch: aligned columns. `users` are the hashes of (advertiser, user,
    platform).
    """

    kinds: np.ndarray  # codes of TOUCH_TYPES
    users: np.ndarray
    times_ms: np.ndarray
    event_ids: Texts
    attributes: list[Coded]  # one column per kept attribute


def record_type(width: int, attributes: int) -> np.dtype[Any]:
    """The layout of a record with event ids of `width` bytes and so many attribute codes."""
    return np.dtype(
        [("user", "<u8"), ("time", "<i8"), ("id", f"S{width}"), *((f"code{at}", "<u8") for at in range(attributes))]
    )


def platform_salts(codes: np.ndarray) -> np.ndarray:
    """What a platform (by its name's code) adds to a user's hash, so that a touch record's user is one on one platform."""
    return stir(codes ^ _PLATFORM)


@cache
def platform_salt(name: str) -> int:
    """The salt of one platform."""
    return int(platform_salts(hash64(texts_of([name.encode()])))[0])


class Touches:
    """The touches of one partition: what is live, and how to write, find and forget it. Times are epoch ms."""

    def __init__(self, tag: str, policy: Policy) -> None:
        self.tag = tag
        self.horizon_ms = policy.bounds.correction_horizon_ms
        self.lookback_ms = {kind: policy.lookback_ms(kind) for kind in ("view", "engaged_view", "click")}
        first = Policy(policy.bounds, policy.versions[:1])  # a later version must find what was stored under this one
        self.span_ms = {kind: max(DAY_MS, first.lookback_ms(kind) // SEGMENTS_PER_WINDOW) for kind in self.lookback_ms}
        self.slot_ms = max(self.lookback_ms.values()) + self.horizon_ms + max(self.span_ms.values())
        self.width = len(policy.bounds.keep)
        self.segments: set[SegmentKey] = set()
        self.slots: set[int] = set()
        self._written: tuple[int, set[int]] = (-1, set())  # the codes whose names this slot of stream time holds
        self._names: dict[int, str | None] = {_NULL_CODE: None}

    def key(self, segment: SegmentKey, bucket: int) -> str:
        """The Redis key of one bucket of a segment."""
        return f"{{{self.tag}}}:touch:{segment[0]}:{segment[1]}:{segment[2]}:{bucket}"

    def names_key(self, slot: int) -> str:
        """The Redis key of the dictionary for touches stored in this slot of stream time."""
        return f"{{{self.tag}}}:names:{slot}"

    def encode(self, batch: Batch, stream_ms: int) -> tuple[dict[SegmentKey, np.ndarray], list[Command]]:
        """A batch's touches as records by segment, and the HSET of the names that are new to the slot of `stream_ms`."""
        buffer, starts, lengths = batch.event_ids
        widths = np.searchsorted(ID_WIDTHS, lengths)
        spans = np.array([self.span_ms[kind] for kind in TOUCH_TYPES], dtype=np.int64)[batch.kinds]
        segments = batch.times_ms // spans
        order = np.lexsort((lengths, segments, batch.kinds))
        keys = np.stack([batch.kinds[order], segments[order], lengths[order]])
        cuts = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
        records: dict[SegmentKey, np.ndarray] = {}
        for rows in np.split(order, cuts):
            if not len(rows):
                continue
            width, length = ID_WIDTHS[widths[rows[0]]], int(lengths[rows[0]])
            packed = np.empty(len(rows), dtype=record_type(width, self.width))
            packed["user"], packed["time"] = batch.users[rows], batch.times_ms[rows]
            packed["id"] = np.ascontiguousarray(buffer[starts[rows, None] + np.arange(length)]).view(f"S{length}")[:, 0]
            for position, column in enumerate(batch.attributes):
                packed[f"code{position}"] = column.codes[rows]
            segment = (TOUCH_TYPES[batch.kinds[rows[0]]], int(segments[rows[0]]), width)
            held = records.get(segment)
            records[segment] = packed if held is None else np.concatenate([held, packed])
        return records, self._new_names(batch.attributes, stream_ms // self.slot_ms)

    def _new_names(self, columns: list[Coded], slot: int) -> list[Command]:
        if self._written[0] != slot or len(self._written[1]) > MAX_CACHED_NAMES:
            self._written = slot, {_NULL_CODE}
        written = self._written[1]
        command: list[Any] = ["HSET", self.names_key(slot)]
        if len(self._names) > MAX_CACHED_NAMES:
            self._names = {_NULL_CODE: None}
        for column in columns:
            codes, rows = np.unique(column.codes, return_index=True)
            for code, row in zip(codes.tolist(), rows.tolist(), strict=True):
                if code in written:
                    continue
                written.add(code)
                name = column.texts.at(row) or ""
                if self._names.setdefault(code, name) != name:
                    raise UnknownName(f"two names share the code {code}: {name!r} and {self._names[code]!r}")
                command += [code, name]
        if len(command) == 2:
            return []
        self.slots.add(slot)
        return [tuple(command)]

    def append(self, records: dict[SegmentKey, np.ndarray]) -> list[Command]:
        """The APPENDs that store a batch's records."""
        commands: list[Command] = []
        for segment, packed in records.items():
            self.segments.add(segment)
            buckets = (packed["user"] & np.uint64(BUCKETS - 1)).astype(np.int64)
            order = np.argsort(buckets, kind="stable")
            ordered = buckets[order]
            raw, size = packed[order].tobytes(), packed.dtype.itemsize
            starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
            for start, end, bucket in zip(
                starts[:-1].tolist(), starts[1:].tolist(), ordered[starts[:-1]].tolist(), strict=True
            ):
                commands.append(("APPEND", self.key(segment, bucket), raw[start * size : end * size]))
        return commands

    def wanted(self, users_and_times: Iterable[tuple[str, int, int]]) -> list[tuple[SegmentKey, int]]:
        """The live (segment, bucket)s that may hold an eligible touch, for (kind, user hash, conversion time) triples."""
        live: dict[str, list[SegmentKey]] = {}
        for segment in self.segments:
            live.setdefault(segment[0], []).append(segment)
        found: dict[tuple[SegmentKey, int], None] = {}
        for kind, user, time_ms in users_and_times:
            for segment in live.get(kind, ()):
                span_ms = self.span_ms[kind]
                if segment[1] * span_ms < time_ms and (segment[1] + 1) * span_ms > time_ms - self.lookback_ms[kind]:
                    found[segment, user & (BUCKETS - 1)] = None
        return list(found)

    def read_commands(self, wanted: list[tuple[SegmentKey, int]]) -> list[Command]:
        """One MGET for the wanted buckets."""
        return [("MGET", *(self.key(segment, bucket) for segment, bucket in wanted))] if wanted else []

    def pool(
        self,
        wanted: list[tuple[SegmentKey, int]],
        blobs: list[bytes | None],
        records: dict[SegmentKey, np.ndarray],
        users: np.ndarray,
    ) -> "Pool":
        """The stored records and this batch's of the given user hashes, ready to be searched."""
        by_segment: dict[SegmentKey, list[np.ndarray]] = {}
        raw: dict[SegmentKey, list[bytes]] = {}
        for (segment, _), blob in zip(wanted, blobs, strict=True):
            if blob:
                raw.setdefault(segment, []).append(blob)
        for segment, parts in raw.items():
            stored = np.frombuffer(b"".join(parts), dtype=record_type(segment[2], self.width))
            by_segment.setdefault(segment, []).append(stored)
        for (
            segment,
            packed,
        ) in records.items():  # after the stored ones, so that equal records stay in order of acceptance
            by_segment.setdefault(segment, []).append(packed)
        pool = Pool()
        for segment, arrays in by_segment.items():
            for packed in arrays:
                pool.add(segment[0], packed[np.isin(packed["user"], users)])
        return pool

    def unknown_codes(self, records: Iterable[Any]) -> list[int]:
        """The codes among the records whose names this process has not read yet."""
        return list({code for record in records for code in record[3:] if code not in self._names})

    def names_commands(self, codes: list[int]) -> list[Command]:
        """Reads names for `learn`; every live slot is asked."""
        return [("HMGET", self.names_key(slot), *codes) for slot in sorted(self.slots)] if codes else []

    def learn(self, codes: list[int], replies: list[list[bytes | None]]) -> None:
        """Takes names that were read from the dictionary."""
        for names in replies:
            for code, name in zip(codes, names, strict=True):
                if name is not None:
                    self._names[code] = name.decode()

    def touch(self, kind: str, record: Any) -> Touch:
        """A record as a `Touch`. Raises `UnknownName` where the dictionary lacks one of its codes."""
        try:
            attributes = tuple([self._names[code] for code in record[3:]])
        except KeyError as error:
            raise UnknownName(f"partition {self.tag}: no name for code {error}; run `onecount rebuild`") from error
        return Touch(kind, record[1], record[2].decode(), attributes)

    def expire(self, stream_ms: int) -> list[Command]:
        """Forgets the segments and dictionaries that no conversion can reach any more; the UNLINKs that free them."""
        ended = {
            segment
            for segment in self.segments
            if stream_ms >= (segment[1] + 1) * self.span_ms[segment[0]] + self.lookback_ms[segment[0]] + self.horizon_ms
        }
        self.segments -= ended
        commands: list[Command] = [
            ("UNLINK", *(self.key(segment, bucket) for bucket in range(BUCKETS))) for segment in sorted(ended)
        ]
        old = {slot for slot in self.slots if stream_ms >= (slot + 2) * self.slot_ms}
        self.slots -= old
        return commands + [("UNLINK", self.names_key(slot)) for slot in sorted(old)]


class Pool:
    """Touch records of the users at hand, by kind and user, searched for the latest before a conversion."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {}
        self._ranges: dict[tuple[str, int], tuple[list[int], list[Any]]] = {}

    def add(self, kind: str, packed: np.ndarray) -> None:
        """Adds records of one kind."""
        if len(packed):
            self._found.setdefault(kind, []).extend(packed.tolist())
            self._ranges.clear()

    def best(self, kind: str, user: int, time_ms: int) -> Any | None:
        """The record of this kind and user hash with the largest (time, event id) strictly before `time_ms`, of
        equal ones the first accepted; None if there is none.
        """
        if not self._ranges:
            self._sort()
        ordered = self._ranges.get((kind, user))
        if ordered is None:
            return None
        index = bisect_left(ordered[0], time_ms) - 1
        if index < 0:
            return None
        found = ordered[1]
        # a touch that came again after its id was forgotten stands twice; sorting kept the order of acceptance
        while index > 0 and found[index - 1][1:3] == found[index][1:3]:
            index -= 1
        return found[index]

    def _sort(self) -> None:
        groups: dict[tuple[str, int], list[Any]] = {}
        for kind, records in self._found.items():
            for record in records:
                groups.setdefault((kind, record[0]), []).append(record)
        for key, records in groups.items():
            records.sort(key=lambda record: (record[1], record[2]))
            self._ranges[key] = ([record[1] for record in records], records)
