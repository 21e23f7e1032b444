"""The users of one partition that converted: their state in Redis, and who of them a late touch may concern.

`{tag}:conv:<bucket>` is a hash of user states by "advertiser\\x1fuser". `{tag}:late:<day>` holds (user hash,
conversion time) pairs of the conversions of one day of event time; a touch older than one of them is late for it and
makes its user settle again.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import xxhash

from app.attribution.state import NEVER_MS
from app.columns.table import distinct
from app.policy.model import DAY_MS

BUCKETS: Final = 64
_PLACES_MIN: Final = 2**12
_PAIR: Final = np.dtype([("user", "<u8"), ("time", "<i8")])

Command = tuple[Any, ...]


def user_field(advertiser_id: str, user_id: str) -> str:
    """The hash field of a user's state; ids hold no control character."""
    return f"{advertiser_id}\x1f{user_id}"


class Converters:
    """The converted users of one partition. Times are epoch ms of event or stream time."""

    def __init__(self, tag: str, horizon_ms: int) -> None:
        self.tag = tag
        self.horizon_ms = horizon_ms
        self.latest_ms: dict[int, int] = {}  # the latest conversion of each user hash, within the correction horizon
        self._newest = self._nobody(_PLACES_MIN)  # at the hash's last bits: the latest of all these users' times
        self.days: set[int] = set()

    def key(self, bucket: int) -> str:
        """The Redis key of one bucket of user states."""
        return f"{{{self.tag}}}:conv:{bucket}"

    def late_key(self, day: int) -> str:
        """The Redis key of one day's (user, conversion time) pairs."""
        return f"{{{self.tag}}}:late:{day}"

    def read_commands(self, fields: list[str]) -> tuple[list[Command], list[list[str]]]:
        """The HMGETs that read users' states, and the fields that each one's reply stands for."""
        by_bucket: dict[int, list[str]] = {}
        for field in fields:
            by_bucket.setdefault(self._bucket(field), []).append(field)
        return [("HMGET", self.key(bucket), *members) for bucket, members in by_bucket.items()], list(
            by_bucket.values()
        )

    def write_commands(self, states: dict[str, bytes | None]) -> list[Command]:
        """The HSETs that store users' packed states, and the HDELs of those that hold nothing any more (None)."""
        sets: dict[int, list[Any]] = {}
        deletions: dict[int, list[str]] = {}
        for field, packed in states.items():
            if packed is None:
                deletions.setdefault(self._bucket(field), []).append(field)
            else:
                sets.setdefault(self._bucket(field), []).extend((field, packed))
        return [("HSET", self.key(bucket), *pairs) for bucket, pairs in sets.items()] + [
            ("HDEL", self.key(bucket), *members) for bucket, members in deletions.items()
        ]

    def note(self, pairs: list[tuple[int, int]]) -> list[Command]:
        """Notes new conversions as (user hash, time ms); the APPENDs that store them."""
        found = np.array(pairs, dtype=_PAIR)
        days = found["time"] // DAY_MS
        begun = distinct(days).tolist()
        self._learn(found)
        self.days.update(begun)
        return [("APPEND", self.late_key(day), found[days == day].tobytes()) for day in begun]

    def late(self, users: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """Which touches are older than a conversion of their user: rows, of aligned columns of user hashes and times (ms)."""
        # most come after all that is known of their user, and of those who share his place
        rows = np.flatnonzero(self._newest[self._places(users)] > times_ms)
        latest_ms = [self.latest_ms.get(user, NEVER_MS) for user in users[rows].tolist()]
        return rows[np.array(latest_ms, dtype=np.int64) > times_ms[rows]]

    def _nobody(self, places: int) -> np.ndarray:
        return np.full(places, NEVER_MS, dtype=np.int64)

    def _places(self, users: np.ndarray) -> np.ndarray:
        return (users & np.uint64(len(self._newest) - 1)).astype(np.int64)

    def _learn(self, pairs: np.ndarray) -> None:
        """Takes conversions in, as (user hash, time ms)."""
        latest_ms = self.latest_ms
        for user, time_ms in pairs.tolist():
            if time_ms > latest_ms.get(user, NEVER_MS):
                latest_ms[user] = time_ms
        if len(latest_ms) > len(self._newest):
            self._place_anew(2 * _power_of_two(len(latest_ms)))
        else:
            np.maximum.at(self._newest, self._places(pairs["user"]), pairs["time"])

    def _place_anew(self, places: int) -> None:
        """Gives all who converted so many places."""
        users, times_ms = self.latest_ms.keys(), self.latest_ms.values()
        self._newest = self._nobody(places)
        hashes = np.fromiter(users, dtype=np.uint64, count=len(users))
        np.maximum.at(self._newest, self._places(hashes), np.fromiter(times_ms, dtype=np.int64, count=len(users)))

    def load(self, blobs: Iterable[bytes | None]) -> None:
        """Reads the stored pairs back after this process took the partition over."""
        for blob in blobs:
            self._learn(np.frombuffer(blob or b"", dtype=_PAIR))

    def expire(self, stream_ms: int) -> list[Command]:
        """Forgets days that no accepted touch can be late for any more; the UNLINKs that free them."""
        ended = {day for day in self.days if stream_ms >= (day + 1) * DAY_MS + self.horizon_ms}
        if not ended:
            return []
        self.days -= ended
        floor_ms = stream_ms - self.horizon_ms
        self.latest_ms = {user: time_ms for user, time_ms in self.latest_ms.items() if time_ms >= floor_ms}
        self._place_anew(max(_PLACES_MIN, _power_of_two(len(self.latest_ms))))
        return [("UNLINK", *(self.late_key(day) for day in sorted(ended)))]

    def _bucket(self, field: str) -> int:
        return xxhash.xxh3_64_intdigest(field.encode()) & (BUCKETS - 1)


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()
