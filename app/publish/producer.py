"""A Kafka producer as careful outside producers use it."""

from collections.abc import Callable

from confluent_kafka import KafkaError, Message, Producer

from app.settings import Settings

# The policy's word for a partitioner, and librdkafka's. Both spread records without a key at random.
PARTITIONERS = {"murmur2": "murmur2_random", "crc32": "consistent_random"}


def producer_properties(settings: Settings, partitioner: str) -> dict[str, object]:
    """librdkafka properties: idempotent, acknowledged by all in-sync replicas, spread by the policy's partitioner."""
    return settings.client(
        **{
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": PARTITIONERS[partitioner],
            "compression.type": "lz4",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "batch.num.messages": 20_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
            # A report for every record would cost more than producing it; what is not reported by the end
            # of a flush was delivered.
            "delivery.report.only.error": True,
            "client.id": "onecount-generate",
        }
    )


def open_producer(
    settings: Settings, partitioner: str, on_failure: Callable[[KafkaError | None, Message], None]
) -> Producer:
    """A producer with `producer_properties`, which calls `on_failure(error, message)` for each record that was not
    delivered.

    One callback for the whole producer: one passed with every record makes producing half as slow again.
    """
    return Producer(producer_properties(settings, partitioner) | {"on_delivery": on_failure})
