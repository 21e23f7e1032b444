"""Reads Kafka's topics to fixed ends, read_committed, leaving no trace: no group is joined and nothing is committed."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final, TypeAlias

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from app.settings import Settings
from app.verify.records import SOURCE_HEADER, Record, VerifyError, parse_source

Spans: TypeAlias = dict[tuple[str, int], tuple[int, int]]

_FETCH_RECORDS: Final = 10_000
_FETCH_S: Final = 0.1  # a read of little waits this long for more
_LOADING: Final = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)
# A partition that was just made, or whose leader has just changed or begun again.
_MOVING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)
_POLL_S: Final = 0.5


def partition_count(admin: AdminClient, topic: str, timeout_s: float) -> int:
    """How many partitions a topic has; raises `VerifyError` if it does not exist."""
    metadata = admin.list_topics(topic, timeout=timeout_s).topics[topic]
    if metadata.error is not None or not metadata.partitions:
        raise VerifyError(f"topic {topic} cannot be read ({metadata.error}); run `onecount topics create` first")
    return len(metadata.partitions)


def fix_spans(settings: Settings, topics: Iterable[str]) -> Spans:
    """The offsets [first kept, end) of every partition as they are now; the end is the last stable offset.

    A commit is told to the partitions of its transaction one by one, to the group's offsets perhaps before the outputs. So an
    end is taken when no transaction that stands before it now is open any more, or has outlived its timeout.

    Raises `VerifyError` for a topic that does not exist, KafkaException if the brokers don't answer.
    """
    timeout_s = settings.request_timeout_ms / 1000
    admin = AdminClient(settings.client())
    where = [
        TopicPartition(topic, number) for topic in topics for number in range(partition_count(admin, topic, timeout_s))
    ]

    def offsets(spec: OffsetSpec, isolation: IsolationLevel) -> dict[tuple[str, int], int]:
        until_s = time.monotonic() + timeout_s
        while True:
            asked = admin.list_offsets(dict.fromkeys(where, spec), isolation_level=isolation, request_timeout=timeout_s)
            try:
                return {(each.topic, each.partition): answer.result().offset for each, answer in asked.items()}
            except KafkaException as error:
                if error.args[0].code() not in _MOVING or time.monotonic() > until_s:
                    raise
            time.sleep(_POLL_S)

    firsts = offsets(OffsetSpec.earliest(), IsolationLevel.READ_COMMITTED)
    written = offsets(OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)
    deadline_s = time.monotonic() + 2 * settings.transaction_timeout_ms / 1000
    while True:
        ends = offsets(OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
        if all(ends[each] >= written[each] for each in ends) or time.monotonic() > deadline_s:
            return {each: (firsts[each], ends[each]) for each in sorted(firsts)}
        time.sleep(_POLL_S)


def read_log(settings: Settings, spans: Spans, only_first: bool = False) -> Iterator[Message]:
    """Every committed record of the spans, each partition by offset; with `only_first` no more than one of a partition.

    Raises `VerifyError` if no record comes for a minute though some are due, KafkaException for a failing client.
    """
    unread = {where: end for where, (first, end) in spans.items() if first < end}
    properties = {"group.id": f"{settings.counter_group}.verify", "enable.auto.commit": False}
    properties |= {"isolation.level": "read_committed", "enable.partition.eof": True, "auto.offset.reset": "error"}
    properties["fetch.wait.max.ms"] = 10  # the end of a log is told only after this wait
    properties["fetch.queue.backoff.ms"] = 20  # a full queue is refilled so soon; librdkafka's second leaves it empty
    if not unread:
        return
    with closing(Consumer(settings.client(**properties))) as consumer:
        consumer.assign([TopicPartition(*where, spans[where][0]) for where in unread])
        heard_s = time.monotonic()
        while unread:
            for message in consumer.consume(_FETCH_RECORDS, _FETCH_S):
                where = (message.topic(), message.partition())
                end = unread.get(where, 0)  # 0: what still comes of a partition that is done
                is_record = not _is_end(message, end)
                if is_record:
                    yield message
                    heard_s = time.monotonic()  # whoever asks for the next one may take his time
                # The end may lie behind control records, which are not delivered: then the partition's EOF tells.
                is_done = message.offset() + 1 >= end or (is_record and only_first)
                if is_done and unread.pop(where, None) is not None:
                    consumer.pause([TopicPartition(*where)])
            if time.monotonic() - heard_s > 6 * settings.request_timeout_ms / 1000:
                raise VerifyError(f"no record came for {time.monotonic() - heard_s:.0f} s; unread: {sorted(unread)}")


def _is_end(message: Message, end: int) -> bool:
    """Whether a message is no record of the span, but its partition's EOF or a record beyond the end."""
    error = message.error()
    if error is None:
        return message.offset() >= end
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    raise VerifyError(f"{message.topic()}/{message.partition()} cannot be read: {error}")


def to_record(message: Message) -> Record:
    """A consumed message as the oracle takes it."""
    source = None
    for name, value in message.headers() or ():
        if name == SOURCE_HEADER:
            source = parse_source(value)
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        source,
        message.headers() if source is None else None,
    )


def unread_spans(settings: Settings, group: str, spans: Spans) -> Spans:
    """Where a group's committed offset has not reached the end, though a record is left to read: those offsets."""
    request = ConsumerGroupTopicPartitions(group, [TopicPartition(*where) for where in spans])
    timeout_s = settings.request_timeout_ms / 1000
    admin = AdminClient(settings.client())  # held until the answer is there: a dropped client answers nothing
    answered = admin.list_consumer_group_offsets([request], require_stable=True, request_timeout=timeout_s)
    behind: Spans = {}
    for each in answered[group].result().topic_partitions:
        first, end = spans[each.topic, each.partition]
        next_offset = max(each.offset, first)  # a group that committed nothing has a negative offset
        if next_offset < end:
            behind[each.topic, each.partition] = (next_offset, end)
    # Control records take up offsets that no consumer ever commits, so only a record that can be read is a lag.
    unread = {(message.topic(), message.partition()) for message in read_log(settings, behind, only_first=True)}
    return {where: span for where, span in behind.items() if where in unread}


def wait_until_read(settings: Settings, group: str, spans: Spans, wait_s: float) -> None:
    """Returns when a group has committed every record of the spans; after `wait_s` seconds raises `VerifyError`, or the
    KafkaException of a coordinator that was not ready in all that time.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            behind = unread_spans(settings, group, spans)
        except KafkaException as error:  # a broker that has just started is still loading its groups
            if error.args[0].code() not in _LOADING or time.monotonic() > deadline_s:
                raise
            time.sleep(_POLL_S)
            continue
        if not behind:
            return
        if time.monotonic() > deadline_s:
            lags = ", ".join(f"{topic}/{number} up to {end - at}" for (topic, number), (at, end) in behind.items())
            raise VerifyError(
                f"group {group} is still behind after {wait_s:g} s (records to read by partition: {lags}); "
                "see that its workers run, or wait longer"
            )
        time.sleep(_POLL_S)
