"""The loop that sends a generated stream to Kafka: as fast as it goes, or at a rate."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message

from app.generate.events import LONGEST_STORY_MS, Generated, events
from app.generate.mix import Mix
from app.generate.owner import owner_partition
from app.policy.model import Policy
from app.publish.producer import open_producer
from app.settings import Settings

_BATCH: Final = 1_000  # records between two looks at the clock and at delivery reports
_FLUSH_TIMEOUT_S: Final = 60.0
_METADATA_TIMEOUT_S: Final = 10.0


class DeliveryError(Exception):
    """Kafka cannot be reached or lacks a topic; the message says what to do."""


@dataclass
class Produced:
    """What was sent: `delivered` records are acknowledged by all in-sync replicas, `failed` ones are not (why:
    `failures`).
    """

    sent: int = 0
    failed: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """Records acknowledged; final once `produce` has returned."""
        return self.sent - self.failed


def produce(
    settings: Settings,
    policy: Policy,
    *,
    seed: int = 1,
    mix: Mix | None = None,
    rate: float | None = None,
    count: int | None = None,
    duration_s: float | None = None,
    speed: float = 1.0,
    start_ms: int | None = None,
    events_per_s: float = 1_000.0,
    on_progress: Callable[[Produced], None] | None = None,
    open_with: Callable[..., Any] = open_producer,
) -> Produced:
    """Sends a stream to the raw topics until `count` records or `duration_s` seconds (the first of them; neither: for
    ever).

    With `rate` (records a second) event times are now; with a `speed` too, history at that rate: event time passes so many
    times faster than the clock, and with a `duration_s` ends about now. Without a rate, it goes as fast as it can: with a `count`, event time
    passes at `events_per_s` from `start_ms` (epoch ms) on, by default such that the last record is not after now; else
    it is now. `on_progress` is called about ten times a second. `open_with` makes the producer.
    Failed records are counted, not raised; `DeliveryError` if Kafka cannot be reached or a topic is missing.
    """
    if rate and speed != 1:
        events_per_s = rate / speed
        count = count or (int(rate * duration_s) if duration_s else None)
    if start_ms is None:
        start_ms = int(time.time() * 1000 - (count or 0) * 1000 / events_per_s) - LONGEST_STORY_MS
    clock = (lambda position: int(time.time() * 1000)) if (rate and speed == 1) or count is None else None
    stream = events(seed, count, start_ms, policy, mix, events_per_s, clock)
    result = Produced()

    def on_failure(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            result.failed += 1
            result.failures[error.str()] = result.failures.get(error.str(), 0) + 1

    producer = open_with(settings, policy.bounds.partitioner, on_failure)
    topics = list(_partitions(producer, settings.events_topics).items())
    started = time.monotonic()
    reported = 0.0
    while duration_s is None or result.seconds < duration_s:
        result.seconds = time.monotonic() - started
        room = _BATCH if rate is None else min(_BATCH, int(result.seconds * rate) - result.sent)
        if room > 0:
            sent = _send(producer, islice(stream, room), topics, policy.bounds.partitioner, result)
            if sent < room:
                break
        producer.poll(0 if room == _BATCH else 0.005)
        if on_progress and result.seconds - reported > 0.1:
            reported = result.seconds
            on_progress(result)
    _finish(producer, result)
    result.seconds = time.monotonic() - started
    if on_progress:
        on_progress(result)
    return result


def _send(
    producer: Any,
    records: Iterator[Generated],
    topics: list[tuple[str, int]],
    partitioner: str,
    result: Produced,
) -> int:
    """Queues records, each to the next topic in turn; waits while the queue is full. Returns how many there were."""
    kinds, sent = result.kinds, result.sent
    for key, value, timestamp_ms, user, foreign, kind in records:
        topic, partitions = topics[sent % len(topics)]
        partition = -1  # the partitioner's choice
        if foreign:
            owner = owner_partition(user, partitions, partitioner)
            partition = (owner + 1 + timestamp_ms % max(partitions - 1, 1)) % partitions
        while True:
            try:
                producer.produce(topic, value, key, partition, None, None, timestamp_ms)
                break
            except BufferError:
                producer.poll(0.05)
        kinds[kind] = kinds.get(kind, 0) + 1
        sent += 1
    before, result.sent = result.sent, sent
    return sent - before


def _finish(producer: Any, result: Produced) -> None:
    """Waits until every record is acknowledged or has failed; what is left after that counts as failed."""
    left = producer.flush(_FLUSH_TIMEOUT_S)
    if left:
        result.failed += left
        why = f"not acknowledged within {_FLUSH_TIMEOUT_S:.0f} s"
        result.failures[why] = result.failures.get(why, 0) + left


def _partitions(producer: Any, topics: tuple[str, ...]) -> dict[str, int]:
    """How many partitions each topic has."""
    try:
        known = producer.list_topics(timeout=_METADATA_TIMEOUT_S).topics
    except KafkaException as error:
        raise DeliveryError(f"Kafka does not answer: {error.args[0].str()}; check ONECOUNT_BOOTSTRAP") from error
    missing = [topic for topic in topics if topic not in known]
    if missing:
        raise DeliveryError(f"there is no topic {', '.join(missing)}; make it with `onecount topics create`")
    return {topic: len(known[topic].partitions) for topic in topics}
