"""Offsets that are missing or that a hand has set: whether they are what was published, as the deltas' own marks say.

Every batch of a counter tells in the deltas which offsets it took, in the transaction that commits them. So the last mark of
a partition is its C, even where the group has forgotten it or was told another one. Aggregators and matchers leave no such marks.
"""

from contextlib import closing
from typing import Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from app.engine.aggregator import read_progress
from app.engine.clients import Clients
from app.engine.owned import Owned
from app.engine.rebuild import read_partition
from app.engine.session import Session
from app.engine.state import OffsetsRefused
from app.publish.records import matched_by
from app.settings import Settings

_RESET: Final = "run `onecount reset`"
_TIMEOUT_S: Final = 10.0


class Marks(NamedTuple):
    """Where the published batches of each partition end, by topic; `is_whole`: whether the deltas still hold all of them."""

    ends: dict[int, dict[str, int]]
    is_whole: bool


def refuse_unproven(session: Session, partitions: list[int]) -> None:
    """Raises `OffsetsRefused` where the group's offsets of these partitions are not those of what is published."""
    doubts = [
        (partition, topic)
        for partition in partitions
        for topic in session.reading.topics
        if _is_in_doubt(session.owned[partition], bool(session.stored[partition]), topic)
    ]
    if not doubts:
        return
    marks = read_marks(session.clients, session.reading.marks_topic) if session.reading.marks_topic else None
    found = []
    for partition, topic in doubts:
        if session.stored[partition]:
            found.append(_beside_state(session, partition, topic, marks))
        elif marks is not None:
            found.append(_without_state(session, partition, topic, marks))
        else:
            found.append(_without_marks(session, partition, topic))
    if any(found):
        session.watch(
            partitions
        )  # ends the session of a worker that was overtaken: what it did not know is the next owner's
        raise OffsetsRefused("; ".join(line for line in found if line))


def _is_in_doubt(owned: Owned, has_state: bool, topic: str) -> bool:
    """Whether a topic's C is to be proven: a hand has set it, or there is neither state nor a log that it follows from."""
    reached = owned.committed.get(topic)
    return topic in owned.by_hand or (not has_state and (reached is None or 0 < reached <= owned.first[topic]))


def _beside_state(session: Session, partition: int, topic: str, marks: Marks | None) -> str:
    owned, stored = session.owned[partition], session.stored[partition].get(topic)
    published = marks.ends.get(partition, {}).get(topic, stored) if marks else stored
    reached, first = owned.committed[topic], owned.first[topic]
    if reached == (first if published is None else published):
        return ""
    if reached == first and published == stored:
        return ""  # what retention deleted before it was counted is given up, as `decide` says
    return (
        f"partition {partition}: the group {session.reading.group} was set by hand to offset {reached} of {topic}, but what is counted ends at "
        f"{published}: set {topic}:{partition} to {published}, or {_RESET}"
    )


def _without_state(session: Session, partition: int, topic: str, marks: Marks) -> str:
    owned, group = session.owned[partition], session.reading.group
    reached, first = owned.committed.get(topic), owned.first[topic]
    published = marks.ends.get(partition, {}).get(topic)
    way = "" if published is None else f"set {topic}:{partition} to {published} (the state is rebuilt), or "
    if reached is None:
        has_none = all(offset is None for offset in owned.committed.values())
        if published is None and (marks.is_whole or not has_none):
            return ""  # nothing of this topic was ever counted
        return f"partition {partition}: events of {topic} were counted, but the state is lost and the group {group} has no offset of it: {way}{_RESET}"
    if topic in owned.by_hand and reached != (first if published is None else published):
        return (
            f"partition {partition}: the group {group} was set by hand to offset {reached} of {topic}, which is not what was counted: "
            f"{way or 'delete the offset, or '}{_RESET}"
        )
    if reached <= first and (published is not None or not marks.is_whole):
        return (
            f"partition {partition}: the state is lost, and {topic} holds nothing any more of what it was made of: raise the topic's retention "
            f"for the future, and {_RESET} to count from what is left"
        )
    return ""


def _without_marks(session: Session, partition: int, topic: str) -> str:
    """An aggregator's state is what it published, a matcher's is in its log; but up to which offset only its group knows."""
    owned = session.owned[partition]
    reached = owned.committed.get(topic)
    if reached is not None and topic not in owned.by_hand:
        return ""
    published = next(iter(session.reading.published_topics), None)
    if published is None:
        published, holds = session.settings.rekeyed_topic, "events that it matched"
        has_published = _has_matched(session.clients, session.settings, partition)
    else:
        holds = "counts"
        has_published = _holds_records(session.clients, published, partition)
    if reached in (None, owned.first[topic]) and not has_published:
        return ""
    return (
        f"partition {partition}: {published} holds {holds}, but their state is lost, and the offset of {topic} in the group {session.reading.group} "
        f"{'is gone' if reached is None else 'was set by hand'}: {_RESET}"
    )


def _has_matched(clients: Clients, settings: Settings, partition: int) -> bool:
    """Whether the matcher of a partition ever found a user. Reads what is re-keyed until it knows."""
    topic = settings.rekeyed_topic
    with closing(clients.reader()) as reader:
        count = len(reader.list_topics(timeout=_TIMEOUT_S).topics[topic].partitions)
    copies = (each for owner in range(count) for each in read_partition(clients, topic, owner, OFFSET_BEGINNING, None))
    return any(matched_by(each) == partition for each in copies)


def _holds_records(clients: Clients, topic: str, partition: int) -> bool:
    return next(iter(read_partition(clients, topic, partition, 0, 1)), None) is not None


def read_marks(clients: Clients, topic: str) -> Marks:
    """The marks of all batches; every partition of the deltas has all of them."""
    with closing(clients.reader()) as reader:
        first = reader.get_watermark_offsets(TopicPartition(topic, 0), _TIMEOUT_S)[0]
    ends: dict[int, dict[str, int]] = {}
    for message in read_partition(clients, topic, 0, first, None):
        for mark in read_progress(message).marks:
            reached = ends.setdefault(mark.partition, {})
            for name, (_, end) in mark.ranges.items():
                reached[name] = max(end, reached.get(name, 0))
    return Marks(ends, first == 0)
