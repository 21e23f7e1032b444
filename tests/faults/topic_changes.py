"""What people and clusters do to topics and offsets behind onecount's back, and how a worker answers."""

import re
import time
from functools import cache

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from app.run import REFUSED
from tests.integration.deployment import Deployment

TIMEOUT_S = 20.0
LOOK_S = 60.0  # a running worker looks at its topics every 10 s


def admin_of(deployment: Deployment) -> AdminClient:
    """A client that may do anything. It must outlive the answers, so it is kept."""
    return _admin_at(deployment.settings.bootstrap)


@cache
def _admin_at(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap})


def raise_partitions(deployment: Deployment, topics: list[str], count: int) -> None:
    """Gives topics more partitions."""
    for future in admin_of(deployment).create_partitions([NewPartitions(topic, count) for topic in topics]).values():
        future.result(TIMEOUT_S)


def recreate(deployment: Deployment, topic: str, partitions: int) -> None:
    """Deletes a topic and creates another one of its name."""
    admin = admin_of(deployment)
    admin.delete_topics([topic])[topic].result(TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while topic in admin.list_topics(timeout=TIMEOUT_S).topics:
        assert time.monotonic() < deadline, f"{topic} is still there"
        time.sleep(0.1)
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(TIMEOUT_S)
    while topic not in admin.list_topics(timeout=TIMEOUT_S).topics:
        time.sleep(0.1)


def delete_groups(deployment: Deployment, *groups: str) -> None:
    """What the expiry of a group's offsets comes to."""
    for future in admin_of(deployment).delete_consumer_groups(list(groups)).values():
        future.result(TIMEOUT_S)


def set_offsets(deployment: Deployment, group: str, places: list[tuple[str, int, int]]) -> None:
    """Sets a group's offsets, (topic, partition, offset) each, as kafka-consumer-groups.sh --reset-offsets does."""
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(*place) for place in places])
    answered = admin_of(deployment).alter_consumer_group_offsets([wanted])[group].result(TIMEOUT_S)
    assert not [place for place in answered.topic_partitions if place.error]


def committed(deployment: Deployment, group: str) -> dict[tuple[str, int], int]:
    """A group's offsets; asked for again where the answer does not come, as on a new broker whose first group this is."""
    request = ConsumerGroupTopicPartitions(group)
    for tries in reversed(range(3)):
        try:
            asked = admin_of(deployment).list_consumer_group_offsets([request], require_stable=True)
            answered = asked[group].result(TIMEOUT_S)
            break
        except TimeoutError:
            if not tries:
                raise
    return {(place.topic, place.partition): place.offset for place in answered.topic_partitions if place.offset >= 0}


def wait_until_counted(deployment: Deployment, events: int) -> None:
    """Waits until so many events more than now are counted, however slow the machine is."""
    group, topic = deployment.settings.counter_group, deployment.settings.events_topics[0]

    def counted() -> int:
        return sum(offset for (name, _), offset in committed(deployment, group).items() if name == topic)

    begun = counted()
    deployment.wait_until(lambda: counted() >= begun + events, f"{events} more events are counted", LOOK_S)


def ends(deployment: Deployment, topic: str) -> list[int]:
    """The last stable offset of each partition."""
    consumer = Consumer({"bootstrap.servers": deployment.settings.bootstrap, "group.id": "look"})
    try:
        partitions = consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions
        return [
            consumer.get_watermark_offsets(TopicPartition(topic, number), TIMEOUT_S)[1] for number in sorted(partitions)
        ]
    finally:
        consumer.close()


def delete_records(deployment: Deployment, topic: str, before: list[int]) -> None:
    """What retention comes to: each partition begins at an offset of `before`."""
    places = [TopicPartition(topic, partition, offset) for partition, offset in enumerate(before)]
    for future in admin_of(deployment).delete_records(places).values():
        future.result(TIMEOUT_S)


def refusal(deployment: Deployment, role: str, slot: int = 0) -> str:
    """Waits for the exit of the worker that was started last there, and gives the one line with which it refused."""
    worker = [process for process in deployment.running if process.args[4:7:2] == [role, str(slot)]][-1]
    code = worker.wait(LOOK_S)
    life: list[str] = []
    for event in deployment.events(role, slot):
        if event["event"] == "started":
            life = []
        elif event["event"] == "refused":
            life.append(event["why"])
    assert code == REFUSED, deployment.logs()
    assert len(life) == 1, deployment.logs()
    assert "\n" not in life[0]
    return life[0]


def start_refused(deployment: Deployment, role: str, slot: int = 0) -> str:
    """Starts a worker that must refuse; why it does."""
    deployment.start(role, slot)
    return refusal(deployment, role, slot)


def obey(deployment: Deployment, group: str, why: str) -> None:
    """Does what a refusal says: sets the offsets `topic:partition to offset` that it names."""
    places = [
        (topic, int(partition), int(offset))
        for topic, partition, offset in re.findall(r"([\w.-]+):(\d+) to (\d+)", why)
    ]
    assert places, why
    set_offsets(deployment, group, places)


def reset(deployment: Deployment) -> None:
    """The documented way where nothing else helps."""
    done = deployment.onecount("reset", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr


def allow_deletion(deployment: Deployment, topic: str) -> None:
    """Lets a compacted topic's records be deleted."""
    entry = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    wanted = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]
    for future in admin_of(deployment).incremental_alter_configs(wanted).values():
        future.result(TIMEOUT_S)
