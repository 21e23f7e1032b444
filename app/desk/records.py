"""What a desk fold keeps of its topics: which record of a key holds, which rows are published, what was refused."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
import orjson
import xxhash

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.rows import dead_letter, encode
from app.desk.fold import Input, Output

WHOLE_LETTERS: Final = 1_000  # that wait to be published; further ones leave their value out, 16 KiB each
Item = TypeVar("Item")
Row = TypeVar("Row", bound=msgspec.Struct)


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


class Published:
    """The rows that ought to lie on an output topic, and those that do, as far as they were given out or read back.

    Without what is read back, a row that an earlier run has published and that is none any more would stay for ever.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._wanted: dict[bytes, bytes] = {}
        self._there: dict[bytes, bytes] = {}
        self._offsets: dict[bytes, int] = {}
        self._doubtful: set[bytes] = set()

    def take(self, record: Input) -> None:
        """A row that lies on the topic."""
        key = record.key or b""
        if record.offset <= self._offsets.get(key, -1):
            return
        self._offsets[key] = record.offset
        if record.value is None:
            self._there.pop(key, None)
        else:
            self._there[key] = record.value
        self._doubtful.add(key)

    def want(self, key: bytes, value: bytes | None) -> None:
        """What the topic ought to hold under a key; None for no row."""
        if value is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = value
        self._doubtful.add(key)

    def differing(self) -> Iterator[Output]:
        """What is to be published, so that the topic holds what it ought to."""
        for key in sorted(self._doubtful):
            wanted = self._wanted.get(key)
            if wanted == self._there.get(key):
                continue
            if wanted is None:
                del self._there[key]
            else:
                self._there[key] = wanted
            yield Output(self.topic, key, wanted)
        self._doubtful.clear()


class Refusals:
    """Records that break their contract: counted by topic and reason, and each a dead letter under its coordinates, so that
    one that is read again is the same letter.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.counted: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[bytes, bytes] = {}

    def add(self, record: Input, rejection: Rejection) -> None:
        """Counts and keeps a refused record."""
        self.counted[record.topic, rejection.reason] += 1
        letter = dead_letter(rejection, *record)
        if len(self._waiting) >= WHOLE_LETTERS:
            letter = msgspec.structs.replace(letter, value_base64=None, truncated=True)
        self._waiting[orjson.dumps([record.topic, record.partition, record.offset])] = encode(letter)

    def letters(self) -> Iterator[Output]:
        """The letters that were not given out yet."""
        for key, value in self._waiting.items():
            yield Output(self.topic, key, value)
        self._waiting.clear()


def judge_row(decode: Callable[[bytes], Row], value: bytes) -> Row | Rejection:
    """A row of one of onecount's own topics; a `Rejection` where it is none of this release."""
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        return Rejection(reasons.INVALID_FIELD, "", str(error)[:200])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return Rejection(reasons.INVALID_JSON, "", str(error)[:200])
