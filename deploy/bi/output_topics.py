"""Reads onecount's output topics up to their ends as of now. Needs confluent-kafka and nothing else of onecount.

Both example consumers use it; docs/contract.md says why each step is there. Three rules make a copy right:
only committed records are read; a key's record with the largest offset holds, a null value deletes its row; and a
topic that was made anew, or a copy that stood still for longer than Kafka keeps deletions, is read from its start.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, TypeAlias

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

DELETIONS_KEPT_S: Final = 14 * 86_400  # delete.retention.ms of the topics, as `onecount topics create` sets it
TIMEOUT_S: Final = 30.0
FETCH_RECORDS: Final = 10_000

Place: TypeAlias = tuple[str, int]  # topic, partition
Offsets: TypeAlias = dict[Place, int]  # the next offset to read, or the end of what is there


class Record(NamedTuple):
    """One upsert; a null `value` deletes the key's row."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None


class Behind(Exception):
    """The topics cannot be read; the message says why and what to do."""


class OutputTopics(AbstractContextManager["OutputTopics"]):
    """The topics, read without a group: where a reader stands is kept with what it has written, nowhere else."""

    def __init__(self, topics: Collection[str], may_be_missing: Collection[str], properties: Mapping[str, Any]) -> None:
        """`may_be_missing`: those of `topics` that a deployment has only if its policy follows journeys. `properties` are
        librdkafka's; `bootstrap.servers` is one of them.
        """
        self._topics = topics
        self._may_be_missing = may_be_missing
        self._admin = AdminClient(dict(properties))
        self._consumer = Consumer(
            {
                **properties,
                "group.id": "onecount-bi",  # librdkafka wants one; nothing is ever committed to it
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
            }
        )

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def ids(self) -> dict[str, str]:
        """The id of each topic that is there. It changes when a topic is deleted and made anew (`onecount reset`)."""
        asked = self._admin.describe_topics(TopicCollection(list(self._topics)), request_timeout=TIMEOUT_S)
        found = {}
        for topic, future in asked.items():
            try:
                found[topic] = str(future.result().topic_id)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART and topic in self._may_be_missing:
                    continue
                raise Behind(f"{topic} cannot be read: {error.args[0].str()}; is its name right?") from error
        return found

    def ends(self, topics: Iterable[str]) -> Offsets:
        """The end of every partition of these as of now: everything before it is committed or rolled back."""
        known = self._admin.list_topics(timeout=TIMEOUT_S).topics
        places = [TopicPartition(topic, number) for topic in topics for number in known[topic].partitions]
        found = self._admin.list_offsets(
            dict.fromkeys(places, OffsetSpec.latest()),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=TIMEOUT_S,
        )
        return {(each.topic, each.partition): future.result().offset for each, future in found.items()}

    def read(self, start: Mapping[Place, int], ends: Offsets) -> Iterator[list[Record]]:
        """All records from `start` (0 where it is silent) to `ends`, in batches, each partition by offset."""
        left = {place: end for place, end in ends.items() if start.get(place, 0) < end}
        self._consumer.assign([TopicPartition(*place, start.get(place, 0)) for place in left])
        heard_s = time.monotonic()
        while left:
            batch = []
            for message in self._consumer.consume(FETCH_RECORDS, 0.2):
                heard_s = time.monotonic()
                place, error = (message.topic(), message.partition()), message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise Behind(f"{place[0]}/{place[1]} cannot be read: {error}")
                end = left.get(place, 0)
                if error is None and message.offset() < end:
                    batch.append(Record(*place, message.offset(), message.key(), message.value()))
                # offsets that end a transaction hold no record: the partition's EOF tells that nothing is left
                if message.offset() + (error is None) >= end and left.pop(place, None) is not None:
                    self._consumer.pause([TopicPartition(*place)])
            if batch:
                yield batch
            if time.monotonic() - heard_s > TIMEOUT_S:
                raise Behind(f"no record came for {TIMEOUT_S:.0f} s; do the brokers answer?")
        self._consumer.unassign()


def why_from_the_start(known_ids: Mapping[str, str], ids: Mapping[str, str], caught_up_s: float) -> str | None:
    """Why a copy must be read anew from the topics' start, though it has got somewhere; None if it need not.

    `known_ids`: of the topics that it was read from; `caught_up_s`: when it last held all that was there (epoch s). A topic
    that has come since is read from its start anyway.
    """
    if any(ids.get(topic) != known for topic, known in known_ids.items()):
        return "the topics were made anew, as `onecount reset` does"
    if time.time() - caught_up_s > DELETIONS_KEPT_S:
        return f"the copy has not caught up for more than {DELETIONS_KEPT_S // 86_400} days, so deletions may be gone"
    return None
