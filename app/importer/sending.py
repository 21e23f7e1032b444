"""Sends records in batches, each acknowledged before the next one starts."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from app.importer.prepare import Prepared
from app.importer.refusal import ImportRefusedError
from app.settings import Settings

BATCH_RECORDS: Final = 10_000
FLUSH_TIMEOUT_S: Final = 60.0


# The policy's word for a partitioner, and librdkafka's.
_PARTITIONERS: Final = {"murmur2": "murmur2_random", "crc32": "consistent_random"}


def open_producer(
    settings: Settings, partitioner: str, on_failure: Callable[[KafkaError | None, Message], None]
) -> Producer:
    """An idempotent producer that waits for all in-sync replicas and spreads keys as the policy's partitioner does.

    `on_failure(error, message)` is called for each record that was not delivered, and for no other.
    """
    properties = {
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": _PARTITIONERS[partitioner],
        "compression.type": "lz4",
        "linger.ms": 20,
        "delivery.report.only.error": True,
        "on_delivery": on_failure,
        "client.id": "onecount-import",
    }
    return Producer(settings.client(**properties))


def batches(records: Iterable[Prepared], span_ms: int, size: int = BATCH_RECORDS) -> Iterator[list[Prepared]]:
    """The records in lists of at most `size`, in which the newest time grows by at most `span_ms`."""
    batch: list[Prepared] = []
    newest_ms = start_ms = -1
    for record in records:
        newest_ms = max(newest_ms, record.time_ms)
        start_ms = newest_ms if start_ms < 0 else start_ms
        if batch and (len(batch) == size or newest_ms - start_ms > span_ms):
            yield batch
            batch, start_ms = [], newest_ms
        batch.append(record)
    if batch:
        yield batch


def send_batch(producer: Any, topic: str, batch: list[Prepared], failures: Counter[str]) -> None:
    """Sends a batch and waits until it is acknowledged; `ImportRefusedError` if some of it is not.

    `failures` is where the producer's delivery callback counts reasons.
    """
    for time_ms, key, value in batch:
        while True:
            try:
                producer.produce(topic, value, key, -1, None, None, time_ms)
                break
            except BufferError:
                producer.poll(0.05)
    left = producer.flush(FLUSH_TIMEOUT_S)
    if left:
        failures[f"not acknowledged within {FLUSH_TIMEOUT_S:.0f} s"] += left
    if failures:
        why = ", ".join(f"{count} x {reason}" for reason, count in failures.items())
        raise ImportRefusedError(
            f"{failures.total()} records were not delivered ({why}). Resume once Kafka is well: they are sent again"
        )
