"""How far consumer groups have got, by their committed offsets."""

import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

POLL_S: Final = 0.2
TIMEOUT_S: Final = 10.0
DELETE_TIMEOUT_S: Final = 30.0


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


class Progress:
    """Asks one cluster how far groups are, and reads topics."""

    def __init__(self, bootstrap: str) -> None:
        # log_level 0: that the broker goes away at the end is no news
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._reader = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "log_level": 0,
                "group.id": "w1-bench-reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )

    def close(self) -> None:
        """Closes the reader."""
        self._reader.close()

    def ends(self, topic: str) -> dict[int, int]:
        """The end offset of each partition."""
        partitions = self._reader.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        return {
            partition: self._reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)[1]
            for partition in partitions
        }

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The group's committed offset of each partition that it has one for."""
        try:
            found = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
        except KafkaException:  # no such group yet
            return {}
        return {place.partition: place.offset for place in found.topic_partitions if place.topic == topic}

    def has_reached_end(self, group: str, topic: str, ends: dict[int, int]) -> bool:
        """Whether the committed offsets are the end offsets; for topics that hold no control records."""
        reached = self.committed(group, topic)
        return all(reached.get(partition, 0) >= end for partition, end in ends.items())

    def has_read_all(self, group: str, topic: str) -> bool:
        """Whether no committed record lies beyond the group's offsets: control records after the last one leave a gap."""
        reached, places = self.committed(group, topic), []
        for partition, end in self.ends(topic).items():
            offset = max(reached.get(partition, 0), 0)
            if offset < end:
                places.append(TopicPartition(topic, partition, offset))
        return next(iter(self._read(places)), None) is None

    def read(self, topic: str) -> list[Message]:
        """All committed records of a topic, partition by partition in order."""
        return self._read([TopicPartition(topic, partition, 0) for partition in self.ends(topic)])

    def _read(self, places: list[TopicPartition]) -> list[Message]:
        if not places:
            return []
        self._reader.assign(places)
        found, left, deadline = [], {place.partition for place in places}, time.monotonic() + 6 * TIMEOUT_S
        while left:
            if time.monotonic() > deadline:
                raise BenchError(f"{places[0].topic} could not be read to its end")
            for message in self._reader.consume(10_000, 0.1):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    raise BenchError(f"reading {places[0].topic}: {error}")
        self._reader.unassign()
        return found

    def recreate(self, topics: list[str], partitions: int) -> None:
        """Makes empty topics of these names."""
        self.delete(topics)
        made = self.admin.create_topics([NewTopic(topic, partitions, 1) for topic in topics])
        for future in made.values():
            future.result()
        self._wait_for(lambda present: set(topics) <= present)

    def delete(self, topics: list[str]) -> None:
        """Deletes those of the topics that there are."""
        present = self.admin.list_topics(timeout=TIMEOUT_S).topics
        doomed = [topic for topic in topics if topic in present]
        if doomed:
            for future in self.admin.delete_topics(doomed, operation_timeout=DELETE_TIMEOUT_S).values():
                future.result()
            self._wait_for(lambda present: not set(doomed) & present)

    def _wait_for(self, holds: Callable[[set[str]], bool]) -> None:
        deadline = time.monotonic() + DELETE_TIMEOUT_S
        while not holds(set(self.admin.list_topics(timeout=TIMEOUT_S).topics)):
            if time.monotonic() > deadline:
                raise BenchError("the broker did not make or delete topics in time")
            time.sleep(0.1)


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str, every_s: float = POLL_S) -> float:
    """Asks every `every_s` seconds; the monotonic time at which the question was put that was answered with yes."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        if holds():
            return asked
        if asked > deadline:
            raise BenchError(f"{what} took longer than {timeout_s:.0f} s")
        time.sleep(every_s)
