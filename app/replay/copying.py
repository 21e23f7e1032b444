"""Copies live input into the shadow raw topic, in the order in which the live counters folded it.

Several topics (raw ones, re-keyed events) feed a partition, and which record came first may decide which of two repeats
counts. Every batch of a counter told in the deltas which offsets it took, so the copies of a partition lie in that order
in ONE topic: a re-keyed copy at its place, and the event that it was made of not at all.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final

from confluent_kafka import KafkaError, Message

from app.contract.events import MAX_EVENT_BYTES
from app.engine.aggregator import read_progress
from app.publish.producer import open_producer
from app.publish.records import source_of
from app.replay.refusal import ReplayRefused
from app.replay.streams import Foreign, Streams, Where
from app.settings import Settings
from app.verify.logs import fix_spans, read_log

_FLUSH_S: Final = 1.0
_LOOK_EVERY: Final = 5_000  # records between two looks at deliveries


class Copier:
    """Goes on from call to call. `watermarks` (epoch ms by owner partition, of `partitions` of them): as the live counters told them."""

    def __init__(
        self,
        settings: Settings,
        shadow: Settings,
        starts: dict[Where, int],
        times_ms: tuple[int, int],
        tick: Callable[[], None],
    ) -> None:
        """`times_ms`: records of these times (epoch ms, half-open) are copied. `tick` is called while it waits; may raise."""
        self.settings = settings
        self.topic = shadow.events_topics[0]
        self.from_ms, self.until_ms = times_ms
        self.tick = tick
        self.read = self.copied = 0
        self.watermarks: dict[int, int] = {}
        self.partitions = 0
        self.unordered = False  # whether records of several topics had to be taken by their times
        self._starts = starts
        self._done = dict(starts)
        self._deltas_next = 0
        self._rekeyed_next: dict[Where, int] = {where: at for where, at in starts.items() if self._is_copy(where[0])}
        self._foreign = Foreign()
        self._failure: str | None = None
        self._streams = Streams(settings, starts, tick)
        self._producer = open_producer(shadow, "murmur2", self._failed)  # each record names its partition

    def close(self) -> None:
        """Ends the clients; what is not delivered is dropped."""
        self._streams.close()
        self._producer.purge()

    def copy_up_to(self, deltas_end: int, committed: dict[Where, int]) -> None:
        """Copies everything that the batches before this offset of the deltas' first partition took.

        `committed`: the live group's offsets, read before that end was; they tell of partitions that had no batch for as
        long as the deltas reach back. Returns when all copies are acknowledged; raises `ReplayRefused`.
        """
        self._learn_copies()
        deltas = (self.settings.deltas_topic, 0)
        first = fix_spans(self.settings, [deltas[0]])[deltas][0]
        if self._deltas_next == 0:
            self._copy_before_marks(first, deltas_end, committed)
        elif first > self._deltas_next:
            raise ReplayRefused(f"retention deleted records of {deltas[0]} while they were read; raise its retention")
        start = max(first, self._deltas_next)
        with closing(read_log(self.settings, {deltas: (start, deltas_end)})) as log:
            for message in log:
                found = read_progress(message)
                self.partitions = found.partitions
                for mark in found.marks:
                    known = self.watermarks.get(mark.partition, -1)
                    self.watermarks[mark.partition] = max(known, mark.watermark_ms)
                    for topic in sorted(mark.ranges):  # a batch is folded in the order of its topics
                        self._copy_to((topic, mark.partition), mark.ranges[topic][1])
        self._deltas_next = max(start, deltas_end)
        self._flush()

    def closed_ms(self, allowed_lateness_ms: int) -> int:
        """The time before which every window is final by what the live counters told; 0 if some told nothing."""
        if not self.partitions or len(self.watermarks) < self.partitions:
            return 0
        return min(self.watermarks.values()) - allowed_lateness_ms

    def _is_copy(self, topic: str) -> bool:
        return topic == self.settings.rekeyed_topic

    def _learn_copies(self) -> None:
        """Every copy of an event that was folded before the deltas' end is committed by now."""
        spans = fix_spans(self.settings, [self.settings.rekeyed_topic])
        fresh = {where: (self._rekeyed_next[where], end) for where, (_, end) in spans.items()}
        for message in read_log(self.settings, fresh):
            topic, partition, offset, _ = source_of(message)
            self._foreign.add((topic, partition), offset)
        self._rekeyed_next = {where: end for where, (_, end) in fresh.items()}

    def _copy_before_marks(self, first: int, deltas_end: int, committed: dict[Where, int]) -> None:
        """What was folded before the deltas' first record, whose order nobody knows any more: by the records' times."""
        if first == 0:
            return
        begins = dict(committed)
        deltas = {(self.settings.deltas_topic, 0): (first, deltas_end)}
        seen: set[Where] = set()
        for message in read_log(self.settings, deltas):
            self.tick()
            for mark in read_progress(message).marks:
                for topic, (start, _) in mark.ranges.items():
                    where = (topic, mark.partition)
                    if where not in seen:
                        seen.add(where)
                        begins[where] = start
        by_partition: dict[int, dict[Where, int]] = defaultdict(dict)
        for where, end in begins.items():
            if where in self._starts:
                by_partition[where[1]][where] = end
        for ends in by_partition.values():
            for where, end in self._by_time(ends):
                self._copy_to(where, end)

    def _by_time(self, ends: dict[Where, int]) -> Iterator[tuple[Where, int]]:
        """Whose turn it is, of the topics of one partition, by their next records' times, and up to which offset."""
        while True:
            heads = []
            for where, end in ends.items():
                head = self._streams.head(where, end)
                if head is not None:
                    heads.append((head.timestamp()[1], where, head.offset() + 1))
            if len(heads) <= 1:
                yield from ends.items()
                return
            self.unordered = True
            yield min(heads)[1:]

    def _copy_to(self, where: Where, end: int) -> None:
        if end <= self._done.get(where, end):  # nothing new, or a topic that is in no setting now
            return
        before = self.read
        for message in self._streams.take(where, end):
            self.read += 1
            if self._belongs(message, where):
                self._produce(message)
            if self.read % _LOOK_EVERY == 0:
                self._look()
        self._done[where] = end
        if self.read > before:
            self._producer.poll(0)

    def _belongs(self, message: Message, where: Where) -> bool:
        value = message.value()
        return (
            self.from_ms <= message.timestamp()[1] < self.until_ms
            and not self._foreign.holds(where, message.offset())
            # no policy accepts these, and what is refused changes no count
            and value is not None
            and len(value) <= MAX_EVENT_BYTES
        )

    def _produce(self, message: Message) -> None:
        record: dict[str, Any] = {
            "value": message.value(),
            "key": message.key(),
            "partition": message.partition(),
            "timestamp": message.timestamp()[1],
        }
        if message.headers():
            record["headers"] = message.headers()
        while True:
            try:
                self._producer.produce(self.topic, **record)
                break
            except BufferError:
                self._producer.poll(0.05)
                self._look()
        self.copied += 1

    def _flush(self) -> None:
        while self._producer.flush(_FLUSH_S):
            self._look()
        self._look()

    def _look(self) -> None:
        self._producer.poll(0)
        self.tick()
        if self._failure is not None:
            raise ReplayRefused(f"copying to {self.topic}: {self._failure}")

    def _failed(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error.str()
