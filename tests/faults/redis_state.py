"""What the ledgers in Redis and the groups in Kafka say of a deployment: how far its state and its outputs are."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import redis
from confluent_kafka import Consumer, KafkaException, TopicPartition

from app.settings import Settings
from tests.integration.deployment import Deployment

Place = tuple[str, int]  # topic and partition
Counting = Callable[..., AbstractContextManager[Deployment]]  # see the fixture `counting`
ROLES = ("counter", "aggregator")
COUNTING_S = 60.0


class LastBatch(NamedTuple):
    """The offsets that the last committed batch of a topic-partition began at and reached (C)."""

    begun: int
    reached: int


def start_counting(deployment: Deployment, wait: bool) -> None:
    """One worker of each stage; `wait`: until it owns all partitions."""
    for role in ROLES:
        deployment.start(role)
    for role in ROLES if wait else ():
        deployment.wait_until(
            lambda role=role: len(deployment.owned(role)) == deployment.settings.partitions,
            f"the {role} owns all partitions",
        )


def leading_topics(settings: Settings) -> dict[str, str]:
    """The topic that each stage's groups hand out, by the stage's Redis tag."""
    return {settings.tag("c"): settings.events_topics[0], settings.tag("a"): settings.deltas_topic}


def state_offsets(url: str, settings: Settings) -> dict[Place, int]:
    """M: the first offset of each leading topic-partition that is not in Redis; 0 where it holds no state."""
    found = {}
    with redis.Redis.from_url(url, socket_timeout=30) as client:
        for tag, topic in leading_topics(settings).items():
            for partition in range(settings.partitions):
                found[topic, partition] = int(client.hget(f"{{{tag}{partition}}}:ledger", f"next:{topic}") or 0)
    return found


def last_batches(settings: Settings) -> dict[Place, LastBatch]:
    """What was committed last on each leading topic-partition."""
    found = {}
    for group, topic in (
        (settings.counter_group, settings.events_topics[0]),
        (settings.aggregator_group, settings.deltas_topic),
    ):
        consumer = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": group})
        try:
            places = [TopicPartition(topic, partition) for partition in range(settings.partitions)]
            for place in _committed(consumer, places):
                found[topic, place.partition] = LastBatch(int(place.metadata or 0), max(place.offset, 0))
        finally:
            consumer.close()
    return found


def _committed(consumer: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """Asked again where the group's coordinator is about to change."""
    deadline = time.monotonic() + COUNTING_S
    while True:
        try:
            return consumer.committed(places, timeout=20)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def assert_several_batches_missing(state: dict[Place, int], settings: Settings) -> None:
    """Every leading topic-partition has published more than the state holds, and more than by its last batch."""
    batches = last_batches(settings)
    near = {place: (state[place], batch) for place, batch in batches.items() if state[place] >= batch.begun}
    assert not near, f"M and the last batch where the state did not fall back by several batches: {near}"


def wait_until_counting(deployment: Deployment, url: str) -> float:
    """Until every partition of both stages has counted on from where it is committed now; the seconds that took."""
    begun_s = time.monotonic()
    committed = {place: batch.reached for place, batch in last_batches(deployment.settings).items()}

    def goes_on() -> bool:
        try:
            state = state_offsets(url, deployment.settings)
        except redis.RedisError:
            return False
        return all(state[place] > reached for place, reached in committed.items())

    deployment.wait_until(goes_on, "all partitions count on", COUNTING_S)
    return time.monotonic() - begun_s


def reasons(deployment: Deployment) -> list[str]:
    """Why sessions of the counter and of the aggregator ended, as their logs say."""
    events = [event for role in ROLES for event in deployment.events(role)]
    return [event["why"] for event in events if event["event"].startswith("session ended")]


def assert_rebuilt(deployment: Deployment) -> None:
    """Both workers said that they rebuilt every partition."""
    for role in ROLES:
        assert rebuilt(deployment, role) == set(range(deployment.settings.partitions)), role


def rebuilt(deployment: Deployment, role: str) -> set[int]:
    """The partitions that a worker said it rebuilt."""
    lines = [event for event in deployment.events(role) if event["event"] == "rebuilt"]
    return {partition for line in lines for partition in line["partitions"]}
