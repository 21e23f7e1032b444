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
_RECENT_MIN: Final = 2**13  # users that a dictionary may hold, at ten times the room; it may hold an eighth of all, too
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
        # The latest conversion of each user hash, within the correction horizon: in columns, sorted by user, and of those who
        # converted lately in a dictionary; the later one holds.
        self._users, self._times_ms = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        self._recent_ms: dict[int, int] = {}
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
        return rows[self._latest_ms(users[rows]) > times_ms[rows]]

    def _latest_ms(self, users: np.ndarray) -> np.ndarray:
        """The latest conversion of each user (ms); NEVER_MS where there is none."""
        recent_ms = [self._recent_ms.get(user, NEVER_MS) for user in users.tolist()]
        at, is_held = self._find(users)
        held_ms = np.full(len(users), NEVER_MS, dtype=np.int64)
        held_ms[is_held] = self._times_ms[at[is_held]]
        return np.maximum(held_ms, np.array(recent_ms, dtype=np.int64))

    def _find(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the users stand in the columns, or would; and who does."""
        at = self._users.searchsorted(users)
        is_held = at < len(self._users)
        is_held[is_held] = self._users[at[is_held]] == users[is_held]
        return at, is_held

    def _nobody(self, places: int) -> np.ndarray:
        return np.full(places, NEVER_MS, dtype=np.int64)

    def _places(self, users: np.ndarray) -> np.ndarray:
        return (users & np.uint64(len(self._newest) - 1)).astype(np.int64)

    def _learn(self, pairs: np.ndarray) -> None:
        """Takes conversions in, as (user hash, time ms)."""
        recent_ms = self._recent_ms
        for user, time_ms in pairs.tolist():
            if time_ms > recent_ms.get(user, NEVER_MS):
                recent_ms[user] = time_ms
        if len(recent_ms) > max(_RECENT_MIN, len(self._users) // 8):
            self._sort_in()
        if len(self._users) + len(recent_ms) > len(self._newest):
            self._sort_in()
            self._place_anew(2 * _power_of_two(len(self._users)))
        else:
            np.maximum.at(self._newest, self._places(pairs["user"]), pairs["time"])

    def _sort_in(self) -> None:
        """Takes those of late into the columns."""
        count = len(self._recent_ms)
        users = np.fromiter(self._recent_ms.keys(), dtype=np.uint64, count=count)
        times_ms = np.fromiter(self._recent_ms.values(), dtype=np.int64, count=count)
        order = np.argsort(users)
        users, times_ms = users[order], times_ms[order]
        at, is_held = self._find(users)
        self._times_ms[at[is_held]] = np.maximum(self._times_ms[at[is_held]], times_ms[is_held])
        self._users = np.insert(self._users, at[~is_held], users[~is_held])
        self._times_ms = np.insert(self._times_ms, at[~is_held], times_ms[~is_held])
        self._recent_ms = {}

    def _place_anew(self, places: int) -> None:
        """Gives all users in the columns so many places."""
        self._newest = self._nobody(places)
        np.maximum.at(self._newest, self._places(self._users), self._times_ms)

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
        self._sort_in()
        kept = self._times_ms >= floor_ms
        self._users, self._times_ms = self._users[kept], self._times_ms[kept]
        self._place_anew(max(_PLACES_MIN, _power_of_two(len(self._users))))
        return [("UNLINK", *(self.late_key(day) for day in sorted(ended)))]

    def _bucket(self, field: str) -> int:
        return xxhash.xxh3_64_intdigest(field.encode()) & (BUCKETS - 1)


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()
