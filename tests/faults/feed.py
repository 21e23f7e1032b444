"""Producers as they misbehave: one whose records for a partition are held up and come later, all at once, and one that
sends what was sent before; and what onecount published meanwhile.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Producer

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_back, read_partition
from app.generate import Generated, Mix, events, owner_partition, producer_properties
from app.policy.load import load_policy
from app.windows import deltas
from tests.integration.deployment import POLICY, Deployment
from tests.upserts import latest

FLUSH_S = 60.0
LARGEST_BYTES = 16 * 2**20


class Sent(NamedTuple):
    """A record and where it goes."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    owner: int = -1  # the partition that owns its user, if that is known


class Feed:
    """Continuous load of the present, in a thread, with every trouble that the generator knows."""

    def __init__(self, deployment: Deployment, rate: int, seed: int, mix: Mix | None = None) -> None:
        self.deployment, self.rate = deployment, rate
        self.policy = load_policy(deployment.settings.policy)[0]
        self.stream = events(seed, None, 0, self.policy, mix, time_at=lambda position: now_ms())
        self.producer = open_feed(deployment)
        self.held: dict[int, list[Sent]] = {}
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def hold(self, partition: int) -> None:
        """The producers of this partition's users fall silent; what they would send they keep, onto whichever partition."""
        with self.lock:
            self.held[partition] = []

    def release(self, partition: int) -> int:
        """They speak again, and first of all send what they kept, with the times of then; how many records."""
        with self.lock:
            kept = self.held.pop(partition)
            for record in kept:
                put(self.producer, record)
        return len(kept)

    def run(self) -> None:
        """Sends until `stop` is set."""
        begun, sent = time.monotonic(), 0
        while not self.stop.wait(0.01):
            due = int((time.monotonic() - begun) * self.rate) - sent
            sent += due
            with self.lock:
                for record in located(self.deployment, islice(self.stream, due)):
                    kept = self.held.get(record.partition, self.held.get(record.owner))
                    if kept is None:
                        put(self.producer, record)
                    else:
                        kept.append(record)


@contextmanager
def feeding(deployment: Deployment, rate: int, seed: int, mix: Mix | None = None) -> Iterator[Feed]:
    """The load, as long as the block lasts."""
    feed = Feed(deployment, rate, seed, mix)
    thread = threading.Thread(target=feed.run, name="feed")
    thread.start()
    try:
        yield feed
        assert thread.is_alive(), "the load ended by itself"
    finally:
        feed.stop.set()
        thread.join()
        assert feed.producer.flush(FLUSH_S) == 0


def now_ms() -> int:
    """The clock (epoch ms)."""
    return int(time.time() * 1000)


def open_feed(deployment: Deployment) -> Producer:
    """A producer as outside ones are; records of 10 MB pass."""
    properties = producer_properties(deployment.settings, "murmur2")
    return Producer(properties | {"message.max.bytes": LARGEST_BYTES})


def put(producer: Producer, record: Sent) -> None:
    """Queues a record; waits while the queue is full."""
    while True:
        try:
            producer.produce(
                record.topic, record.value, record.key, partition=record.partition, timestamp=record.timestamp_ms
            )
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.05)


def send(deployment: Deployment, records: Iterable[Sent]) -> int:
    """Sends records as fast as it goes, and waits until they are acknowledged; how many."""
    producer, count = open_feed(deployment), 0
    for record in records:
        put(producer, record)
        count += 1
    assert producer.flush(FLUSH_S) == 0
    return count


def located(deployment: Deployment, generated: Iterable[Generated]) -> Iterator[Sent]:
    """Generated records with the topic and partition that the generator would send them to."""
    settings = deployment.settings
    topic, partitions = settings.events_topics[0], settings.partitions
    for record in generated:
        owner = owner_partition(record.user, partitions, "murmur2")
        partition = (owner + record.foreign) % partitions
        yield Sent(topic, partition, record.key, record.value, record.timestamp_ms, owner)


def raw_records(deployment: Deployment) -> list[Sent]:
    """Everything that the raw topics hold now, of each partition in order."""
    settings = deployment.settings
    return [
        Sent(topic, partition, message.key(), message.value(), message.timestamp()[1])
        for topic in settings.events_topics
        for partition in range(settings.partitions)
        for message in read_partition(KafkaClients(settings), topic, partition, 0, None)
    ]


def published_counts(deployment: Deployment, before_ms: int) -> dict[bytes, dict[str, object]]:
    """The latest count row of each key whose window begins before an instant, without its revision."""
    settings, found = deployment.settings, {}
    for partition in range(settings.partitions):
        published = latest(read_back(KafkaClients(settings), settings.counts_topic, partition, 0))
        for key, value in published.items():
            row = rows.decode_count(value)
            if row.window_start < before_ms:
                found[key] = {name: getattr(row, name) for name in (*rows.MEASURES, "window_start")}
    return found


def count_upserts(deployment: Deployment) -> Iterator[tuple[bytes, rows.CountRow]]:
    """Every count row ever published, of each partition in order."""
    settings = deployment.settings
    for partition in range(settings.partitions):
        for message in read_partition(KafkaClients(settings), settings.counts_topic, partition, 0, None):
            yield message.key(), rows.decode_count(message.value())


def marks(deployment: Deployment) -> list[deltas.Mark]:
    """The progress that the counters told of their partitions, in order."""
    settings = deployment.settings
    return [
        mark
        for message in read_partition(KafkaClients(settings), settings.deltas_topic, 0, 0, None)
        for mark in deltas.decode(message.value()).marks
    ]


def last_final_ms(deployment: Deployment) -> int:
    """The start of the latest window that was published as final; 0 if there is none."""
    return max((row.window_start for _, row in count_upserts(deployment) if row.final), default=0)


def corrected_after_final(deployment: Deployment) -> int:
    """How many count rows were final and have changed since."""
    final: dict[bytes, int] = {}
    changed = set()
    for key, row in count_upserts(deployment):
        if row.final and key not in final:
            final[key] = row.revision
        elif key in final and row.revision > final[key]:
            changed.add(key)
    return len(changed)


def brisk_policy(folder: Path) -> Path:
    """The policy with windows of a second that become final within a test's patience."""
    text = POLICY.read_text()
    for slow, brisk in (("\nwindow: 1m", "\nwindow: 1s"), ("\nallowed_lateness: 1m", "\nallowed_lateness: 2s")):
        assert slow in text
        text = text.replace(slow, brisk)
    path = folder / "brisk.yaml"
    path.write_text(f"idle_timeout: 3s\n{text}")
    return path
