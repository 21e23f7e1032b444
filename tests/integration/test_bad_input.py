"""Every way to break the contract, sent to a real topic: nothing stops, nothing is counted, each lies on the dead-letter topic."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.verify.partition import owner_of
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed
from tests.unit.test_contract import DAY_MS, NOW_MS, REFUSED, encoded, view

LARGE_BYTES = 16 * 2**20


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    # a raw topic that lets a 10 MB record in, as a broker with a generous limit would
    config = {"max.message.bytes": str(LARGE_BYTES), "retention.ms": "-1"}
    admin = AdminClient({"bootstrap.servers": services.bootstrap})
    for future in admin.create_topics([NewTopic(f"{topic_prefix}.events", 4, 1, config=config)]).values():
        future.result(10)
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


def dead_letters(deployment: Deployment) -> dict[tuple[str, int, int], rows.DeadLetter]:
    found = {}
    for partition in range(deployment.settings.partitions):
        for message in read_partition(
            KafkaClients(deployment.settings), deployment.settings.dlq_topic, partition, 0, None
        ):
            letter = rows.decode_dead_letter(message.value())
            assert (letter.topic, letter.partition, letter.offset) not in found, "refused twice"
            found[letter.topic, letter.partition, letter.offset] = letter
    return found


@pytest.mark.timeout(180)
def test_every_refused_record_is_on_the_dead_letter_topic_and_changes_no_count(deployment: Deployment) -> None:
    settings = deployment.settings
    topic = settings.events_topics[0]
    producer = Producer(settings.client(**{"message.max.bytes": LARGE_BYTES}))
    sent: dict[tuple[str, int, int], tuple[str, str, bytes | None]] = {}
    home = owner_of("u1", settings.partitions, "murmur2")

    def send(name: str, raw: bytes | None, reason: str) -> None:
        def delivered(error: object, message: object) -> None:
            assert error is None, f"{name}: {error}"
            sent[topic, message.partition(), message.offset()] = (name, reason, raw)  # type: ignore[attr-defined]

        producer.produce(topic, raw, b"u1", partition=home, timestamp=NOW_MS, on_delivery=delivered)

    for name, raw, reason, _ in REFUSED:
        send(name, raw, reason)
    # the one that depends on the stream: after an event of now, one of 7 days and a bit ago whose record is as old
    producer.produce(topic, encoded(view(event_id="now")), b"u1", partition=home, timestamp=NOW_MS)
    producer.flush(30)
    old_ms = NOW_MS - 7 * DAY_MS - 1

    def late(error: object, message: object) -> None:
        assert error is None
        place = (topic, message.partition(), message.offset())  # type: ignore[attr-defined]
        sent[place] = ("beyond the horizon", "beyond_correction_horizon", None)

    producer.produce(
        topic,
        encoded(view(event_id="old", event_time=old_ms)),
        b"u1",
        partition=home,
        timestamp=old_ms,
        on_delivery=late,
    )
    assert producer.flush(30) == 0
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    deployment.assert_exact()
    letters = dead_letters(deployment)
    assert {place: letter.reason for place, letter in letters.items()} == {
        place: case[1] for place, case in sent.items()
    }
    for place, (name, _, raw) in sent.items():
        assert letters[place].size_bytes == len(raw) if raw is not None else True, name
    assert deployment.stop(counter) == 0
    assert deployment.stop(aggregator) == 0
