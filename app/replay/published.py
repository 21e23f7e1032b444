"""What is published: the counts of a range as they stand at one moment, and which input they are made of."""

from collections.abc import Callable
from typing import Final, NamedTuple

import orjson
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from app.contract.rows import CountRow, decode_count
from app.engine.aggregator import read_deltas
from app.replay.comparison import Place
from app.replay.refusal import ReplayRefused
from app.replay.streams import Where
from app.settings import Settings
from app.verify.logs import Spans, fix_spans, read_log, wait_until_read
from app.verify.records import VerifyError

_TRIES: Final = 5


class Moment(NamedTuple):
    """The live counts as they were, and the input that they are made of.

    `counts`: the spans of the counts topic. `deltas_end`: before it, in the first partition of the deltas, stand all batches
    that they add up. `committed`: the counter group's offsets, from before that. `moved`: windows and platforms that a batch
    beyond may already have changed in the counts.
    """

    counts: Spans
    deltas_end: int
    committed: dict[Where, int]
    moved: frozenset[Place]


def find_moment(settings: Settings, in_range: Callable[[int], bool], wait_s: float) -> Moment:
    """The live counts of now. `in_range` says of a window's start (epoch ms) whether it is of interest.

    Tried again while windows of the range change just then. Raises `ReplayRefused` if the aggregators do not come after.
    """
    moment = _moment(settings, in_range, wait_s)
    for _ in range(_TRIES - 1):
        if not moment.moved:
            break
        moment = _moment(settings, in_range, wait_s)
    return moment


def _moment(settings: Settings, in_range: Callable[[int], bool], wait_s: float) -> Moment:
    committed = committed_offsets(settings, settings.counter_group, settings.input_topics())
    # Whatever stands before an end of `before` was committed when `spans` was looked for, and so stands before its ends in
    # every partition. So what may be counted beyond `spans` begins behind `before`.
    before = fix_spans(settings, [settings.deltas_topic])
    spans = fix_spans(settings, [settings.deltas_topic])
    try:
        wait_until_read(settings, settings.aggregator_group, spans, wait_s)
    except VerifyError as error:
        raise ReplayRefused(f"the live counts are not at rest: {error}") from error
    counts = fix_spans(settings, [settings.counts_topic])
    after = fix_spans(settings, [settings.deltas_topic])
    beyond = {where: (max(before[where][1], first), end) for where, (first, end) in after.items()}
    moved = {
        (window, platform)
        for message in read_log(settings, beyond)
        for key, *_ in read_deltas(message).rows
        for window, platform, *_ in [orjson.loads(key)]
        if in_range(window)
    }
    return Moment(counts, spans[settings.deltas_topic, 0][1], committed, frozenset(moved))


def committed_offsets(settings: Settings, group: str, topics: tuple[str, ...]) -> dict[Where, int]:
    """A group's offsets, by topic and partition; those of partitions where it has none are left out."""
    timeout_s = settings.request_timeout_ms / 1000
    admin = AdminClient(settings.client())
    known = admin.list_topics(timeout=timeout_s).topics
    places = [TopicPartition(topic, number) for topic in topics if topic in known for number in known[topic].partitions]
    request = ConsumerGroupTopicPartitions(group, places)
    answered = admin.list_consumer_group_offsets([request], require_stable=True, request_timeout=timeout_s)
    found = answered[group].result().topic_partitions
    return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}


def read_counts(settings: Settings, spans: Spans, in_range: Callable[[int], bool]) -> dict[bytes, CountRow]:
    """The latest row of each key in these spans whose window is in range."""
    latest: dict[bytes, bytes] = {}
    for message in read_log(settings, spans):
        key, value = message.key(), message.value()
        if not in_range(int(key[1 : key.index(b",")])):
            continue
        if value is None:
            latest.pop(key, None)
        else:
            latest[key] = value
    return {key: decode_count(value) for key, value in latest.items()}
