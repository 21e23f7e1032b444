"""Brokers that go and come back: the only one, each of three by what it does, and the majority."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from app.local import LocalKafka, LocalRedis, local_kafka, local_redis
from tests.faults.redis_state import start_counting, state_offsets, wait_until_counting
from tests.integration.deployment import Deployment, deployed

INTERNAL_PARTITIONS = 4  # of each internal topic, see app.local.kafka
ANSWER_S = 10.0
MOVED_S = 60.0
RESUMED_S_MAX = 30.0  # of work on a busy machine; what has to run out first is at most the session timeout, 6 s


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    with local_redis() as running:
        yield running


@pytest.fixture
def one(server: LocalRedis, topic_prefix: str, tmp_path: Path) -> Iterator[tuple[LocalKafka, Deployment]]:
    """A broker of the test's own, and onecount on it."""
    with local_kafka() as kafka, deployed(kafka.bootstrap, server.url, topic_prefix, tmp_path) as deployment:
        start_counting(deployment, wait=True)
        yield kafka, deployment


@pytest.fixture
def three(server: LocalRedis, topic_prefix: str, tmp_path: Path) -> Iterator[tuple[LocalKafka, Deployment]]:
    """Three brokers that keep everything thrice and acknowledge what two have."""
    with (
        local_kafka(brokers=3, min_insync_replicas=2) as kafka,
        deployed(kafka.bootstrap, server.url, topic_prefix, tmp_path, replication=3) as deployment,
    ):
        start_counting(deployment, wait=True)
        yield kafka, deployment


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_broker_stopped_and_killed_and_started_again_counts_exactly(
    one: tuple[LocalKafka, Deployment], server: LocalRedis, chance: random.Random, seed: int
) -> None:
    kafka, deployment = one
    with deployment.load(seed=seed):
        for end in (kafka.stop, kafka.kill):
            wait_until_counting(deployment, server.url)
            time.sleep(chance.uniform(0, 1))
            end()
            assert_nothing_is_counted(deployment, server, 1)
            kafka.start()
        wait_until_counting(deployment, server.url)
    deployment.finish()


@pytest.mark.timeout(300)
def test_a_broker_that_is_away_for_longer_than_every_timeout_counts_exactly(
    one: tuple[LocalKafka, Deployment],
    server: LocalRedis,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    kafka, deployment = one
    with deployment.load(seed=seed):
        wait_until_counting(deployment, server.url)
        kafka.kill()
        assert_nothing_is_counted(deployment, server, 30)
        for role in ("counter", "aggregator"):
            deployment.wait_until(lambda role=role: not deployment.owned(role), f"the {role} gives its partitions up")
        kafka.start()
        resumed_s = wait_until_counting(deployment, server.url)
        record_property("resumed_s", round(resumed_s, 1))
        assert resumed_s < RESUMED_S_MAX
    deployment.finish()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", [LocalKafka.kill, LocalKafka.stop], ids=["killed", "stopped"])
def test_coordinators_and_a_leader_lost_in_turn_hand_over_and_counting_goes_on(
    three: tuple[LocalKafka, Deployment],
    server: LocalRedis,
    chance: random.Random,
    seed: int,
    end: Callable[[LocalKafka, int], None],
) -> None:
    """Another broker takes over what the lost one did, and counting goes on while it is away."""
    kafka, deployment = three
    settings = deployment.settings
    counter_id = f"{settings.counter_group}-{settings.worker_id}-0"
    assert group_coordinator(kafka, settings.counter_group) == leader_for(
        kafka, "__consumer_offsets", settings.counter_group
    ), "the hash that finds coordinators is not Kafka's"
    finds: list[Callable[[], int]] = [
        lambda: leader_for(kafka, "__transaction_state", counter_id),
        lambda: leader_for(kafka, "__consumer_offsets", settings.counter_group),
        lambda: leader_for(kafka, "__consumer_offsets", settings.aggregator_group),
        lambda: leader(kafka, settings.events_topics[0], chance.randrange(settings.partitions)),
        lambda: leader(kafka, settings.deltas_topic, chance.randrange(settings.partitions)),
    ]
    with deployment.load(seed=seed):
        for find in finds:
            wait_until_counting(deployment, server.url)
            lost = find()
            end(kafka, lost)
            deployment.wait_until(lambda lost=lost: lost not in leaders(kafka), "the others take over", MOVED_S)
            wait_until_counting(deployment, server.url)
            kafka.start(lost)
            deployment.wait_until(lambda: is_whole(kafka), "all replicas are in sync again", MOVED_S)
    deployment.finish()


@pytest.mark.timeout(400)
def test_a_cluster_that_lost_its_majority_or_all_brokers_stops_counting_and_resumes(
    three: tuple[LocalKafka, Deployment], server: LocalRedis, chance: random.Random, seed: int
) -> None:
    """With one of three neither a record is acknowledged nor a leader elected."""
    kafka, deployment = three
    with deployment.load(seed=seed):
        wait_until_counting(deployment, server.url)
        two = chance.sample(range(3), 2)
        for broker in two:
            kafka.kill(broker)
        assert_nothing_is_counted(deployment, server, 15)
        for broker in two:
            kafka.start(broker)
        wait_until_counting(deployment, server.url)
        kafka.kill_all()
        assert_nothing_is_counted(deployment, server, 15)
        kafka.start_all()
        deployment.wait_until(lambda: is_whole(kafka), "all replicas are in sync again", MOVED_S)
        wait_until_counting(deployment, server.url)
    deployment.finish()


def assert_nothing_is_counted(deployment: Deployment, server: LocalRedis, during_s: float) -> None:
    """What was in flight when the broker went is over after a moment; from then on the state stands still."""
    time.sleep(2)
    before = state_offsets(server.url, deployment.settings)
    time.sleep(during_s)
    assert state_offsets(server.url, deployment.settings) == before


def _partitions(kafka: LocalKafka) -> dict[tuple[str, int], tuple[int, int, int]]:
    """The leader of every topic-partition, and the numbers of its replicas and of those in sync."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    topics = admin.list_topics(timeout=ANSWER_S).topics.values()
    return {
        (topic.topic, number): (found.leader, len(found.replicas), len(found.isrs))
        for topic in topics
        for number, found in topic.partitions.items()
    }


def leaders(kafka: LocalKafka) -> set[int]:
    """The brokers that lead anything, as the others say."""
    return {leader for leader, _, _ in _partitions(kafka).values()}


def is_whole(kafka: LocalKafka) -> bool:
    """Whether every topic-partition has a leader and all its replicas."""
    return all(leader >= 0 and replicas == in_sync for leader, replicas, in_sync in _partitions(kafka).values())


def leader(kafka: LocalKafka, topic: str, partition: int) -> int:
    return _partitions(kafka)[topic, partition][0]


def leader_for(kafka: LocalKafka, internal_topic: str, name: str) -> int:
    """The coordinator of a group or a transactional id: who leads its partition, by Java's hash of its name."""
    hashed = 0
    for sign in name:
        hashed = (31 * hashed + ord(sign)) & 0xFFFFFFFF
    signed = hashed - 2**32 if hashed >= 2**31 else hashed
    return leader(kafka, internal_topic, abs(signed) % INTERNAL_PARTITIONS)


def group_coordinator(kafka: LocalKafka, group: str) -> int:
    """As Kafka itself says."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    return int(admin.describe_consumer_groups([group])[group].result(ANSWER_S).coordinator.id)
