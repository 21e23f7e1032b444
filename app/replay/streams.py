"""The live input topics, read by assignment and in any order of partitions, with a bound on what is held."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from app.engine.clients import QUEUE_BACKOFF_MS
from app.replay.refusal import ReplayRefused
from app.settings import Settings

# A topic and a partition.
Where: TypeAlias = tuple[str, int]

_FETCH_RECORDS: Final = 10_000
_FETCH_S: Final = 0.1
_HELD_RECORDS: Final = 100_000  # of all partitions together, beside what librdkafka holds
_SILENCE_S: Final = 60.0


class Streams:
    """Committed records of several partitions, each from its start on. No group is joined and nothing is committed."""

    def __init__(self, settings: Settings, starts: dict[Where, int], tick: Callable[[], None]) -> None:
        self.tick = tick  # called while records are waited for; may raise
        self._held: dict[Where, deque[Message]] = defaultdict(deque)
        self._reached = dict(starts)  # up to where nothing is left to fetch
        self._paused: set[Where] = set()
        self._limit = max(_HELD_RECORDS // max(len(starts), 1), 500)
        self._consumer = Consumer(
            settings.client(
                **{
                    "group.id": f"{settings.counter_group}.verify",  # never joined
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 50,  # the end of a log is told only after this wait
                    "queued.max.messages.kbytes": 65_536,
                    "queued.min.messages": self._limit,
                    "fetch.queue.backoff.ms": QUEUE_BACKOFF_MS,
                }
            )
        )
        self._consumer.assign([TopicPartition(*where, offset) for where, offset in starts.items()])

    def close(self) -> None:
        """Ends the client."""
        self._consumer.close()

    def take(self, where: Where, end: int) -> Iterator[Message]:
        """Yields the records of one partition that were not taken yet, up to the offset `end`, which must be committed.

        Raises `ReplayRefused` where retention deletes them meanwhile, or no broker answers.
        """
        held = self._held[where]
        while True:
            while held and held[0].offset() < end:
                yield held.popleft()
            if held or self._reached[where] >= end:
                return
            self._fetch()

    def head(self, where: Where, end: int) -> Message | None:
        """The record that `take` would yield next; None if there is none before `end`."""
        held = self._held[where]
        while not held and self._reached[where] < end:
            self._fetch()
        return held[0] if held and held[0].offset() < end else None

    def _fetch(self) -> None:
        for where in [each for each in self._paused if len(self._held[each]) <= self._limit // 2]:
            self._consumer.resume([TopicPartition(*where)])
            self._paused.discard(where)
        deadline_s = time.monotonic() + _SILENCE_S
        while not (messages := self._consumer.consume(_FETCH_RECORDS, _FETCH_S)):
            self.tick()
            if time.monotonic() > deadline_s:
                raise ReplayRefused(f"Kafka sent no record for {_SILENCE_S:.0f} s, though some are due")
        self.tick()
        for message in messages:
            where, error = (message.topic(), message.partition()), message.error()
            if error is None:
                self._held[where].append(message)
                self._reached[where] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._reached[where] = message.offset()
            else:
                raise ReplayRefused(f"{where[0]}/{where[1]} cannot be read: {error.str()}")
        for where in {(message.topic(), message.partition()) for message in messages} - self._paused:
            if len(self._held[where]) > self._limit:
                self._consumer.pause([TopicPartition(*where)])
                self._paused.add(where)


class Foreign:
    """Offsets of the events that were copied to their owner's partition; a bit each, in blocks that begin to exist with
    the first event in them.
    """

    _BITS: Final = 65_536

    def __init__(self) -> None:
        self._blocks: dict[tuple[Where, int], bytearray] = {}

    def add(self, where: Where, offset: int) -> None:
        """Remembers an event's place."""
        block, bit = divmod(offset, self._BITS)
        bits = self._blocks.setdefault((where, block), bytearray(self._BITS // 8))
        bits[bit >> 3] |= 1 << (bit & 7)

    def holds(self, where: Where, offset: int) -> bool:
        """Whether the event at this place was copied."""
        if not self._blocks:
            return False
        block, bit = divmod(offset, self._BITS)
        bits = self._blocks.get((where, block))
        return bits is not None and bool(bits[bit >> 3] & 1 << (bit & 7))
