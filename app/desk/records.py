"""What a desk fold keeps of its topics: which record of a key holds, and which rows were given out."""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import xxhash

from app.desk.fold import Input, Output

Item = TypeVar("Item")


class Change(NamedTuple, Generic[Item]):
    """What one record changes: what its key held, and what it holds now. `name` stands for the key."""

    name: bytes
    before: Item | None
    after: Item | None


class Latest(Generic[Item]):
    """What each key of some topics holds: that of the record with the largest offset, in whatever order they come."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[int, Item | None]] = {}

    def put(self, record: Input, key: bytes, item: Item | None) -> Change[Item] | None:
        """Takes a record whose value is `item`, None where it deletes; None where it changes nothing."""
        name = xxhash.xxh3_128_digest(b"%s\0%s" % (record.topic.encode(), key))
        offset, before = self._held.get(name, (-1, None))
        if record.offset <= offset:
            return None
        self._held[name] = (record.offset, item)  # a deletion too: an older record may come after it
        return Change(name, before, item) if item != before else None


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
