"""Reads topics from their first record on, committed records only, and goes on at their ends."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import closing
from threading import Event
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from app.desk.fold import Input
from app.engine.clients import KafkaClients, Topic
from app.settings import Settings

MOST_RECORDS: Final = 2_000  # of one batch; the web views wait while it is taken
_WAIT_S: Final = 0.1
_QUIET: Final = 2  # librdkafka's log level: what becomes of the question is told by who asks
# Librdkafka tries these again by itself.
_PASSING: Final = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)

Place = tuple[str, int]  # topic and partition


class Batch(NamedTuple):
    """Records in the order of their partitions, and how far each partition is read with them: the offset to read next."""

    records: list[Input]
    positions: dict[Place, int]


def described(clients: KafkaClients, names: Iterable[str], refused: Callable[[str], Exception]) -> dict[str, Topic]:
    """What Kafka says of the topics. Raises `refused` where one is not there, and KafkaException."""
    names = list(names)
    topics = clients.topics(names)
    if lacking := [name for name in names if name not in topics]:
        raise refused(f"no such topic: {', '.join(lacking)}; run `onecount topics create`")
    return topics


def places_of(topics: dict[str, Topic]) -> list[Place]:
    """Every partition."""
    return [(name, number) for name, topic in topics.items() for number in range(topic.partitions)]


def read_log(clients: KafkaClients, places: Iterable[Place], give: Callable[[Batch], None], stop: Event) -> None:
    """Gives everything that the partitions hold and will hold, until told to stop. Raises KafkaException."""
    with closing(clients.follower()) as consumer:
        consumer.assign([TopicPartition(*place, 0) for place in places])
        while not stop.is_set():
            batch = _read(consumer)
            if batch.positions:
                give(batch)


def _read(consumer: Consumer) -> Batch:
    batch = Batch([], {})
    for message in consumer.consume(MOST_RECORDS, _WAIT_S):
        error, place = message.error(), (message.topic(), message.partition())
        if error is None:
            batch.records.append(_input(message))
            batch.positions[place] = message.offset() + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            batch.positions[place] = message.offset()  # past what ends a transaction, which is no record
        elif error.code() not in _PASSING:
            raise KafkaException(error)
    return batch


def _input(message: Message) -> Input:
    return Input(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
    )


class Ends:
    """Asks where the committed records of partitions end: what is behind an open transaction cannot be read yet."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None

    def ask(self, places: Iterable[Place]) -> dict[Place, int]:
        """The offset after the last committed record of each. Raises KafkaException."""
        timeout_s = self._settings.request_timeout_ms / 1000
        admin, self._admin = self._admin or AdminClient(self._settings.client(log_level=_QUIET)), None
        asked = {TopicPartition(*place): OffsetSpec.latest() for place in places}
        answers: dict[Any, Future[Any]] = admin.list_offsets(
            asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_s
        )
        try:
            found = {
                (each.topic, each.partition): answer.result(timeout_s + 1).offset for each, answer in answers.items()
            }
        except TimeoutError as error:  # this process was paused while it waited
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer about the ends of the topics")) from error
        self._admin = admin  # one that was not answered may go on asking a broker that has died
        return found
