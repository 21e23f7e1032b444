"""Lost state: folding it anew from the log, or reading it back from the output, without publishing anything twice."""

import time
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

from app.engine.clients import Clients
from app.engine.failpoint import passing
from app.engine.fold import Fold
from app.engine.session import Session, SessionEnded
from app.engine.state import StateRefused

HOUR_MS = 3_600_000
READ_TIMEOUT_S = 10  # without a record or the end of the log: nobody answers


def finish_rebuild(session: Session, partition: int) -> None:
    """At C: what is published is read back, and whatever differs from the rebuilt state leaves as an ordinary
    correction.
    """
    published = read_latest(session.clients, session.reading.published_topic, partition)
    session.watch([partition])
    owned = session.owned[partition]
    fold: Fold = session.stage.reconcile(partition, published, session.store.run)
    offsets = {topic: max(offset, owned.committed.get(topic) or 0) for topic, offset in owned.next.items()}
    if fold.outputs:
        session.confirm([partition])
        session.publish(fold, {partition: offsets})
    session.write(fold, {partition: offsets}, rebuilding=set())
    passing("rebuilt")


def read_latest(clients: Clients, topic: str, partition: int) -> dict[bytes, bytes]:
    """The latest committed value of each key of a partition; deleted keys are left out."""
    latest: dict[bytes, bytes] = {}
    for message in read_partition(clients, topic, partition, OFFSET_BEGINNING, None):
        if message.value() is None:
            latest.pop(message.key(), None)
        else:
            latest[message.key()] = message.value()
    return latest


def read_partition(clients: Clients, topic: str, partition: int, offset: int, limit: int | None) -> Any:
    """Yields a partition's committed records from `offset` to its end at the time of the call, or `limit` of them.

    The end is that of all records: what was committed behind another producer's open transaction can only be read when
    that one has ended, and is waited for. Otherwise it would be missed, and published again.
    """
    consumer = clients.reader()
    try:
        place = TopicPartition(topic, partition, offset)
        consumer.assign([place])
        end: int | None = None
        deadline = time.monotonic() + READ_TIMEOUT_S
        count = 0
        while limit is None or count < limit:
            for message in consumer.consume(10_000 if limit is None else limit - count, 0.1):
                deadline = time.monotonic() + READ_TIMEOUT_S
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
            if time.monotonic() > deadline:
                raise SessionEnded(f"reading {topic}/{partition} back: no answer in {READ_TIMEOUT_S} s")
    finally:
        consumer.close()


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
