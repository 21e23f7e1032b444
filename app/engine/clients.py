"""The Kafka clients of a session, and the properties that the protocol of DESIGN section 4 rests on."""

from typing import Any, Protocol

from confluent_kafka import Consumer, Producer

from app.settings import Settings


class Clients(Protocol):
    """Where a session gets its clients; tests give ones in memory."""

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer."""

    def consumer(self, group: str, worker: str) -> Consumer:
        """A consumer of the group, not subscribed yet."""

    def reader(self) -> Consumer:
        """A consumer outside any group, for reading a partition back."""


class KafkaClients:
    """Real clients, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer."""
        return Producer(producer_properties(self.settings, transactional_id))

    def consumer(self, group: str, worker: str) -> Consumer:
        """A consumer of the group, not subscribed yet."""
        return Consumer(consumer_properties(self.settings, group, worker))

    def reader(self) -> Consumer:
        """A consumer outside any group, for reading a partition back."""
        return Consumer(reader_properties(self.settings))


def reader_properties(settings: Settings) -> dict[str, Any]:
    """A consumer that reads committed records by assignment and commits nothing."""
    return settings.client(
        **{
            "group.id": "onecount-read",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,  # the end of a log is told only after this wait
        }
    )


def producer_properties(settings: Settings, transactional_id: str) -> dict[str, Any]:
    """The transactional producer's properties."""
    return settings.client(
        **{
            "transactional.id": transactional_id,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "batch.num.messages": 100_000,
            "compression.type": "lz4",
            "message.max.bytes": 8 * 2**20,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )


def consumer_properties(settings: Settings, group: str, worker: str) -> dict[str, Any]:
    """The group consumer's properties. It starts only where `reopen` says: there is no automatic reset."""
    properties: dict[str, Any] = {
        "group.id": group,
        "client.id": worker,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "group.protocol": settings.group_protocol,
        "fetch.message.max.bytes": 8 * 2**20,
        "queued.max.messages.kbytes": 65_536,
        "queued.min.messages": 100_000,
        "fetch.wait.max.ms": 100,
    }
    if settings.group_protocol == "classic":
        properties |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.session_timeout_ms,
        }
    if settings.static_membership:
        properties["group.instance.id"] = f"{group}-{worker}"
    return settings.client(**properties)
