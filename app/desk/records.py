"""What a desk fold keeps of its topics: which record of a key holds, and which rows were given out."""

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

import xxhash

from app.desk.fold import Input, Output
from app.policy.model import DAY_MS

Item = TypeVar("Item")
_NEVER: Final = -(2**40)  # days


class Change(NamedTuple, Generic[Item]):
    """What one record changes: what its key held, and what it holds now. `name` stands for the key."""

    name: bytes
    before: Item | None
    after: Item | None


def name_of(topic: str, key: bytes) -> bytes:
    """What stands for a key of a topic: a digest, 16 bytes."""
    return xxhash.xxh3_128_digest(b"%s\0%s" % (topic.encode(), key))


class Latest(Generic[Item]):
    """What each key of some topics holds: that of the record with the largest offset, in whatever order they come."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[int, Item | None]] = {}

    def put(self, record: Input, key: bytes, item: Item | None) -> Change[Item] | None:
        """Takes a record whose value is `item`, None where it deletes; None where it changes nothing."""
        name = name_of(record.topic, key)
        offset, before = self._held.get(name, (-1, None))
        if record.offset <= offset:
            return None
        self._held[name] = (record.offset, item)  # a deletion too: an older record may come after it
        return Change(name, before, item) if item != before else None

    def take_out(self, name: bytes) -> int:
        """Lets go of what a key holds; its offset."""
        return self._held.pop(name)[0]

    def put_back(self, name: bytes, offset: int, item: Item) -> None:
        """Holds what was taken out."""
        self._held[name] = (offset, item)

    def __len__(self) -> int:
        """How many keys are held, deleted ones too."""
        return len(self._held)


class Recent(Generic[Item]):
    """As `Latest`, of keys that each have a time and can change for `held_ms` behind the newest final time of their partition,
    in the order in which it is written. What is older is settled: it is held no more, and a record of it counts where it is
    none that was read before. A newer time alone settles nothing: while one of those who write to the partition has come that
    far, another one may be months behind.
    """

    def __init__(self, held_ms: int) -> None:
        self._held_days = held_ms // DAY_MS + 1
        self._days: dict[int, dict[int, Latest[Item]]] = {}  # by partition and day
        self._first: dict[int, int] = {}  # by partition, the first day that is not settled
        self._read: dict[int, int] = {}  # the largest offset by partition

    def put(self, record: Input, key: bytes, time_ms: int, item: Item | None, is_final: bool) -> Change[Item] | None:
        """Takes a record whose value is `item`, None where it deletes; None where it changes nothing. `is_final`: all who write
        to the partition have passed that time, and what ended before it has been written as final.
        """
        days, day = self._days.setdefault(record.partition, {}), time_ms // DAY_MS
        is_new = record.offset > self._read.get(record.partition, -1)
        self._read[record.partition] = max(record.offset, self._read.get(record.partition, -1))
        first = self._first.get(record.partition, _NEVER)
        if day < first:
            return Change(b"", None, item) if is_new and item is not None else None
        if is_final and day - self._held_days > first:
            self._first[record.partition] = first = day - self._held_days
            for settled in [each for each in days if each < first]:
                del days[settled]
        return days.setdefault(day, Latest()).put(record, key, item)

    def __len__(self) -> int:
        """How many keys are held."""
        return sum(len(latest) for days in self._days.values() for latest in days.values())


class Rows:
    """The rows that an output topic ought to hold, and which of them were not given out as they are now."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._given: dict[bytes, bytes] = {}  # a digest of each
        self._waiting: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes | None) -> None:
        """What the topic ought to hold under a key; None for no row."""
        self._waiting[key] = value

    def differing(self) -> Iterator[Output]:
        """What is to be published."""
        waiting, self._waiting = self._waiting, {}
        for key, value in waiting.items():
            digest = None if value is None else xxhash.xxh3_128_digest(value)
            if digest == self._given.get(key):
                continue
            if digest is None:
                del self._given[key]
            else:
                self._given[key] = digest
            yield Output(self.topic, key, value)
