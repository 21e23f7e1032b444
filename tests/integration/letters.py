"""Dead letters for a test: raw records and their letters, as counters would write them, and what became of them."""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson
from confluent_kafka import Message, Producer

from app.contract import rows
from app.contract.events import Rejection
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.letters.log import Letter, LetterLog
from app.letters.marks import read_marks
from tests.integration.deployment import Deployment

FLUSH_S = 30.0


def now_ms() -> int:
    """The clock (epoch ms)."""
    return int(time.time() * 1000)


def conversion(event_id: str, **fields: object) -> dict[str, object]:
    """A conversion of now."""
    return {
        "event_id": event_id,
        "event_type": "conversion",
        "event_time": now_ms(),
        "advertiser_id": "a1",
        "user_id": "u1",
        "platform": "meta",
        "conversion_name": "purchase",
        "value": 10,
    } | fields


def click(event_id: str, **fields: object) -> dict[str, object]:
    """A click of a minute ago."""
    return {
        "event_id": event_id,
        "event_type": "click",
        "event_time": now_ms() - 60_000,
        "advertiser_id": "a1",
        "user_id": "u1",
        "platform": "meta",
        "campaign_id": "c1",
    } | fields


def send(deployment: Deployment, records: Iterable[tuple[bytes | None, bytes | None]]) -> list[Message]:
    """Sends (key, value) to the first raw topic, keyed as producers do; the messages as they were acknowledged, in order."""
    producer = Producer(deployment.settings.client(**{"partitioner": "murmur2_random"}))
    delivered: dict[int, Message] = {}

    def note(number: int) -> Any:
        def report(error: object, message: Message) -> None:
            assert error is None, error
            delivered[number] = message

        return report

    count = 0
    for number, (key, value) in enumerate(records):
        producer.produce(deployment.settings.events_topics[0], value, key, on_delivery=note(number))
        count += 1
    assert producer.flush(FLUSH_S) == 0
    return [delivered[number] for number in range(count)]


def write_letters(deployment: Deployment, events: Iterable[dict[str, object]], reason: str) -> list[str]:
    """Sends events under somebody else's key, and writes the letters that a counter would have; their coordinates."""
    messages = send(deployment, ((b"nobody", orjson.dumps(event)) for event in events))
    producer = Producer(deployment.settings.client())
    for message in messages:
        place = (message.topic(), message.partition(), message.offset(), message.timestamp()[1])
        letter = rows.dead_letter(Rejection(reason, "user_id", "written by a test"), *place, b"nobody", message.value())
        producer.produce(deployment.settings.dlq_topic, rows.encode(letter), b"nobody")
    assert producer.flush(FLUSH_S) == 0
    return [f"{message.topic()}:{message.partition()}:{message.offset()}" for message in messages]


def dead_letters(deployment: Deployment) -> list[Letter]:
    """All letters of now."""
    return list(LetterLog(deployment.settings, KafkaClients(deployment.settings)).read())


def wait_for_letters(deployment: Deployment, count: int) -> list[Letter]:
    """Until the counters have refused so many events."""
    deployment.wait_until(lambda: len(dead_letters(deployment)) >= count, f"{count} dead letters")
    return dead_letters(deployment)


def states(deployment: Deployment) -> Counter[str]:
    """How many letters are open, retried and dropped."""
    marks = read_marks(deployment.settings, KafkaClients(deployment.settings))
    return Counter(marks.state(letter.content) for letter in dead_letters(deployment))


def raw_ids(deployment: Deployment) -> Counter[str]:
    """How many committed records of the first raw topic hold each event_id."""
    settings, found = deployment.settings, Counter[str]()
    for partition in range(settings.partitions):
        for message in read_partition(KafkaClients(settings), settings.events_topics[0], partition, 0, None):
            found[orjson.loads(message.value())["event_id"]] += 1
    return found


def counted(deployment: Deployment) -> dict[str, int]:
    """The `conversions` of each event_id in the attributed rows, summed over platforms."""
    settings, latest = deployment.settings, {}
    for partition in range(settings.partitions):
        for message in read_partition(KafkaClients(settings), settings.attributed_topic, partition, 0, None):
            latest[message.key()] = message.value()
    found: Counter[str] = Counter()
    for value in filter(None, latest.values()):
        row = rows.decode_attributed(value)
        found[row.event_id] += row.conversions
    return dict(found)
