"""Kafka's logs and transactions in memory: what a broker holds, with the offsets, gaps and isolation of the real one."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException

Place = tuple[str, int]  # topic and partition
Committed = tuple[int, str]  # an offset and its metadata


def failure(code: int, words: str) -> KafkaException:
    """What a client raises for a broker's error."""
    return KafkaException(KafkaError(code, words))


class MemoryMessage:
    """One record or partition event, as confluent-kafka's Message shows it."""

    def __init__(
        self,
        place: Place,
        offset: int,
        key: bytes | None = None,
        value: bytes | None = None,
        timestamp_ms: int = 0,
        headers: list[tuple[str, bytes]] | None = None,
        error: int | None = None,
    ) -> None:
        self._place, self._offset = place, offset
        self._key, self._value, self._headers = key, value, headers
        self._timestamp = (1, timestamp_ms)
        self._error = None if error is None else KafkaError(error)

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return self._timestamp

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers

    def error(self) -> KafkaError | None:
        return self._error

    def __len__(self) -> int:
        return len(self._value or b"")

    def __repr__(self) -> str:
        return f"<{self._place[0]}/{self._place[1]}/{self._offset} {self._error or self._value!r}>"


class Fate(Enum):
    """What becomes of a commit that its producer sees time out."""

    COMMITTED = "committed"
    NEVER = "never"  # the request was lost: the transaction stays open
    LATE = "late"  # the request is on its way, and arrives before the id's next producer


class Outcome(Enum):
    """The state of a transaction."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False)
class Transaction:
    """One transaction: where it wrote, from which offset on, and the offsets that it carries for groups."""

    outcome: Outcome = Outcome.OPEN
    logs: dict["Log", int] = field(default_factory=dict)
    offsets: dict[str, dict[Place, Committed]] = field(default_factory=dict)


class Log:
    """One topic-partition: entries by offset. A control record is None, and takes an offset like any other."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.entries: list[tuple[MemoryMessage | None, Transaction | None]] = []
        self.open: dict[Transaction, int] = {}
        self.first = 0  # retention removes what is below

    def append(self, record: dict[str, Any], now_ms: int, transaction: Transaction | None) -> int:
        """Writes one record; its offset."""
        offset = len(self.entries)
        message = MemoryMessage(
            self.place,
            offset,
            _bytes(record.get("key")),
            _bytes(record.get("value")),
            record.get("timestamp") or now_ms,
            record.get("headers"),
        )
        self.entries.append((message, transaction))
        if transaction is not None and transaction not in self.open:
            self.open[transaction] = transaction.logs[self] = offset
        return offset

    def end_transaction(self, transaction: Transaction) -> None:
        """Writes the control record."""
        self.entries.append((None, None))
        del self.open[transaction]

    def stable_end(self) -> int:
        """The last stable offset: nothing from the first open transaction on may be read."""
        return min(self.open.values(), default=len(self.entries))

    def read(self, offset: int, limit: int) -> tuple[list[MemoryMessage], int]:
        """Up to `limit` committed records from `offset` on, and the offset to read on from."""
        found: list[MemoryMessage] = []
        end = self.stable_end()
        while offset < end and len(found) < limit:
            message, transaction = self.entries[offset]
            offset += 1
            if message is not None and (transaction is None or transaction.outcome is Outcome.COMMITTED):
                found.append(message)
        while offset < end and not self._readable(offset):
            offset += 1
        return found, offset

    def _readable(self, offset: int) -> bool:
        message, transaction = self.entries[offset]
        return message is not None and (transaction is None or transaction.outcome is Outcome.COMMITTED)


@dataclass
class ProducerId:
    """What the transaction coordinator knows of one transactional id. `late`: a commit that is still on its way."""

    epoch: int = 0
    transaction: Transaction | None = None
    late: Transaction | None = None
    fates: deque[Fate | None] = field(default_factory=deque)


class Broker:
    """Topics, transactional ids and the committed offsets of groups. `now_ms` is the broker's clock, which workers' records
    get: never behind a producer's, whose records it would refuse.
    """

    def __init__(self, topics: dict[str, int]) -> None:
        self.logs = {
            (topic, number): Log((topic, number)) for topic, count in topics.items() for number in range(count)
        }
        self.topics = dict(topics)
        self.ids: dict[str, ProducerId] = {}
        self.offsets: dict[str, dict[Place, Committed]] = {}
        self.now_ms = 0

    def append(self, topic: str, partition: int, **record: Any) -> int:
        """One record from a producer without transactions; its offset."""
        self.now_ms = max(self.now_ms, record.get("timestamp") or 0)
        return self.logs[topic, partition].append(record, self.now_ms, None)

    def committed(self, topic: str) -> list[MemoryMessage]:
        """Every committed record of a topic, partition by partition."""
        return [
            message
            for number in range(self.topics[topic])
            for message in self.logs[topic, number].read(0, len(self.logs[topic, number].entries))[0]
        ]

    def transactional_id(self, name: str) -> ProducerId:
        """The coordinator's entry for a transactional id."""
        return self.ids.setdefault(name, ProducerId())

    def end(self, transaction: Transaction, outcome: Outcome) -> None:
        """Commits or aborts: control records, and a commit's offsets."""
        assert transaction.outcome is Outcome.OPEN
        transaction.outcome = outcome
        for log in transaction.logs:
            log.end_transaction(transaction)
        if outcome is Outcome.COMMITTED:
            for group, offsets in transaction.offsets.items():
                self.offsets.setdefault(group, {}).update(offsets)
        for entry in self.ids.values():
            if entry.transaction is transaction:
                entry.transaction = None
            if entry.late is transaction:
                entry.late = None

    def new_epoch(self, name: str) -> int:
        """Fences the older producers of a transactional id, ends what they left open, and gives the new epoch."""
        entry = self.transactional_id(name)
        if entry.late is not None:
            self.end(entry.late, Outcome.COMMITTED)
        if entry.transaction is not None:
            self.end(entry.transaction, Outcome.ABORTED)
        entry.epoch += 1
        return entry.epoch

    def expire_transactions(self) -> None:
        """What the transaction timeout does: ends every open transaction, and fences its producer."""
        for name, entry in self.ids.items():
            if entry.transaction is not None:
                self.new_epoch(name)

    def expire(self, log: "Log") -> None:
        """As `expire_transactions`, of those that are open in one log."""
        for name, entry in self.ids.items():
            if entry.transaction is not None and entry.transaction in log.open:
                self.new_epoch(name)

    def is_unstable(self, group: str, places: set[Place]) -> bool:
        """Whether an open transaction carries offsets of these places."""
        open_ones = [entry.transaction for entry in self.ids.values() if entry.transaction is not None]
        return any(places & transaction.offsets.get(group, {}).keys() for transaction in open_ones)


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
