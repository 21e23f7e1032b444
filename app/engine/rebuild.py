"""Lost state: folding it anew from the log, or reading it back from the output, without publishing anything twice.

Of what is published only the rows that can still change are read back, so a rebuild takes no longer the longer onecount has
run: a row is written after what it tells of has happened, so all rows from a time on lie behind that time in their topic.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from app.engine.clients import READ_AHEAD_BYTES, Clients
from app.engine.failpoint import passing
from app.engine.fold import Command, Published, Record
from app.engine.session import Session, SessionEnded
from app.engine.state import StateRefused

HOUR_MS = 3_600_000
LEADER_S: Final = 1.0
WAIT_S: Final = 0.01  # for more records, after the end of the log was told, too
READ_TIMEOUT_S = 10  # without a record or the end of the log: nobody answers
CLOCK_MS: Final = 86_400_000  # more than a broker's clock is behind those that the events' times come from
SETTLED_S: Final = 2.0  # without state, C alone says what is published: it is asked for again after so long
STRETCH: Final = 1_000  # records of the deltas, read backwards; each further stretch is four times as long
NOTHING_LEFT_MS: Final = 2**53  # later than any event
BEAT_RECORDS: Final = 50_000  # well within a second
HEARD_S: Final = 5.0  # so often the group hears of a worker that compares: well within max.poll.interval.ms


def finish_rebuild(session: Session, partition: int) -> bool:
    """At C: what is published is read back, and whatever differs from the rebuilt state leaves as an ordinary
    correction; whether anything did.
    """
    attended = Attended(session, partition)
    try:
        return _finish(session, partition, attended)
    finally:
        attended.end()


def _finish(session: Session, partition: int, attended: "Attended") -> bool:
    clients, stage, owned = session.clients, session.stage, session.owned[partition]
    time.sleep(max(0.0, owned.opened_at + SETTLED_S - time.monotonic()))
    session.confirm_offsets([partition])
    offsets = {topic: max(offset, owned.committed.get(topic) or 0) for topic, offset in owned.next.items()}
    leading = session.reading.topics[0]
    before = read_backwards(clients, leading, partition, owned.first[leading], offsets[leading])
    session.watch([partition])
    begins_ms = log_begins_ms(session, partition)
    since_ms = stage.published_since_ms(partition, begins_ms, before, attended.run)
    published = chain.from_iterable(
        read_back(clients, topic, partition, since_ms - further_ms, attended.look)
        for topic, further_ms in session.reading.published_topics.items()
    )
    parts = stage.reconcile(partition, begins_ms, published, since_ms, attended.run)
    part = next(parts)
    for following in parts:
        session.write(part, {partition: offsets}, rebuilding={partition})
        session.watch([partition])
        part = following
    if part.outputs:
        session.confirm([partition])
        session.publish(part, {partition: offsets})
    session.write(part, {partition: offsets}, rebuilding=set())
    passing("rebuilt")
    return bool(part.outputs)


class Attended:
    """Keeps a worker in its group while it compares a partition, which may take longer than `max.poll.interval.ms`: nothing
    is fetched meanwhile, and other partitions may come and go. Raises `SessionEnded` once this one is taken away.
    """

    def __init__(self, session: Session, partition: int) -> None:
        self.session = session
        self.partition = partition
        self.owned = session.owned[partition]
        self.heard_s = time.monotonic()
        self.has_paused = False

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """As the store's."""
        self.look()
        return self.session.store.run(commands)

    def look(self) -> None:
        """A sign of life, at times to the group too; with it comes whatever the group has to say."""
        session = self.session
        session.beat()
        if time.monotonic() - self.heard_s < HEARD_S:
            return
        # what is fetched already would stand before the group's word
        session.consumer.pause(self._places())
        self.has_paused = True
        before = dict(session.owned)
        session.poll(1, 0)
        if session.owned.get(self.partition) is not self.owned:
            raise SessionEnded(f"partition {self.partition} was taken away while its rebuild was compared", "ownership")
        if session.owned != before:
            session.watch([self.partition])  # whoever opens another one may have let the guard of this one go
        self.heard_s = time.monotonic()

    def end(self) -> None:
        """Fetches again."""
        if self.has_paused:
            self.session.consumer.resume(self._places())

    def _places(self) -> list[TopicPartition]:
        owned = self.session.owned.items()
        return [
            TopicPartition(topic, partition) for partition, each in owned for topic in each.read.keys() - each.paused
        ]


def read_back(
    clients: Clients, topic: str, partition: int, since_ms: int, beat: Callable[[], None] = lambda: None
) -> Iterator[Published]:
    """The committed rows of a partition in their order, as (key, value); None for a deleted one. At least all that were
    written since a time (epoch ms), or all where it is 0 or less. Calls `beat` now and then, as it may take minutes.
    """
    records = read_partition(clients, topic, partition, OFFSET_BEGINNING, None, since_ms)
    for count, message in enumerate(records):
        if count % BEAT_RECORDS == 0:
            beat()
        yield message.key(), message.value()


def read_backwards(clients: Clients, topic: str, partition: int, first: int, end: int) -> Iterator[list[Record]]:
    """The committed records of [first, end) in stretches, the newest first."""
    length = STRETCH
    while end > first:
        begin = max(first, end - length)
        stretch = []
        for record in read_partition(clients, topic, partition, begin, end - begin):
            if record.offset() >= end:  # offsets have gaps, so that there are fewer records in between
                break
            stretch.append(record)
        yield stretch
        end, length = begin, length * 4


def read_partition(
    clients: Clients,
    topic: str,
    partition: int,
    offset: int,
    limit: int | None,
    since_ms: int = 0,
    at_once: int = 10_000,
    ahead_bytes: int = READ_AHEAD_BYTES,
) -> Any:
    """Yields a partition's committed records from `offset` to its end at the time of the call, or `limit` of them; with
    `since_ms` (epoch ms) at least all that were written since then, by clocks that agree within a day. Holds `at_once` records and
    some `ahead_bytes` while the next one is not asked for.

    The end is that of all records: what was committed behind another producer's open transaction can only be read when
    that one has ended, and is waited for. Otherwise it would be missed, and published again.
    """
    consumer = clients.reader(ahead_bytes)
    try:
        if since_ms > CLOCK_MS:
            offset = _offset_at(consumer, topic, partition, since_ms - CLOCK_MS)
        place = TopicPartition(topic, partition, offset)
        with suppress(KafkaException):  # whoever assigns before the leader is known waits half a second for it
            consumer.get_watermark_offsets(place, LEADER_S)
        consumer.assign([place])
        end: int | None = None
        deadline = time.monotonic() + READ_TIMEOUT_S
        count = 0
        while limit is None or count < limit:
            for message in consumer.consume(at_once if limit is None else min(at_once, limit - count), WAIT_S):
                error = message.error()
                if error is None:
                    count += 1
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    end = consumer.get_watermark_offsets(place, cached=True)[1] if end is None else end
                    if message.offset() >= end:
                        return
                else:
                    raise SessionEnded(f"reading {topic}/{partition} back: {error}")
                deadline = time.monotonic() + READ_TIMEOUT_S  # whoever asks for the next one may take his time
            if time.monotonic() > deadline:
                raise SessionEnded(f"reading {topic}/{partition} back: no answer in {READ_TIMEOUT_S} s")
    finally:
        consumer.close()


def _offset_at(consumer: Consumer, topic: str, partition: int, since_ms: int) -> int:
    """The offset of the first record that was written at a time (epoch ms) or later; where there is none yet, of the end."""
    end = consumer.get_watermark_offsets(TopicPartition(topic, partition), READ_TIMEOUT_S)[1]
    (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, since_ms)], READ_TIMEOUT_S)
    if found.error is not None:
        raise SessionEnded(f"reading {topic}/{partition} back: {found.error}")
    # behind the end that was asked for first may lie what has been committed since
    return found.offset if found.offset >= 0 else end


def log_begins_ms(session: Session, partition: int) -> int:
    """The Kafka timestamp (epoch ms) of the oldest record that a partition's topics still hold, of several topics the latest; 0
    where retention has removed nothing, `NOTHING_LEFT_MS` where one of them holds nothing any more.
    """
    if not session.stage.rebuilds_from_log:
        return 0
    begins_ms = [0]
    for topic in session.reading.topics:
        if session.owned[partition].first[topic] > 0:
            oldest = next(iter(read_partition(session.clients, topic, partition, OFFSET_BEGINNING, 1)), None)
            begins_ms.append(NOTHING_LEFT_MS if oldest is None else oldest.timestamp()[1])
    return max(begins_ms)


def refuse_short_log(session: Session, partition: int) -> None:
    """Raises `StateRefused`, with the number of missing hours, if the log no longer reaches back over what a rebuild
    needs.
    """
    needed_ms = session.stage.rebuild_ms
    owned = session.owned[partition]
    for topic in session.reading.topics:
        first, reached = owned.next[topic], owned.committed.get(topic)
        if first == 0 or reached is None or first >= reached or not session.stage.rebuilds_from_log:
            continue
        begins = next(iter(read_partition(session.clients, topic, partition, first, 1)), None)
        ends = next(iter(read_partition(session.clients, topic, partition, reached - 1, 1)), None)
        if begins is None or ends is None:
            continue
        missing_ms = begins.timestamp()[1] - (ends.timestamp()[1] - needed_ms)
        if missing_ms > 0:
            raise StateRefused(
                f"partition {partition}: the state is lost and {topic} lacks {-(-missing_ms // HOUR_MS)} hours of the {needed_ms // HOUR_MS} "
                "that a rebuild reads; raise the topic's retention for the future and run `onecount reset` to count from what is left"
            )
