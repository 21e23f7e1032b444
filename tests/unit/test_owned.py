"""What of several topics may be folded together."""

from math import inf

import pytest

from app.engine.ledger import Mode
from app.engine.owned import Owned
from tests.memory.log import MemoryMessage

A, B = "ads.events", "onecount.rekeyed"


def owned(span_ms: float = inf) -> Owned:
    return Owned(1, Mode.LIVE, {A: 0, B: 0}, {A: None, B: None}, span_ms)


def put(partition: Owned, topic: str, *times_ms: int) -> None:
    """Records of one call to consume, with these times."""
    first = partition.read[topic]
    messages = [MemoryMessage((topic, 0), first + at, timestamp_ms=time_ms) for at, time_ms in enumerate(times_ms)]
    partition.add(topic, messages)  # type: ignore[arg-type]


def taken(partition: Owned) -> dict[str, list[int]]:
    """The times of the records that are folded now, by topic."""
    batch = partition.take()
    found: dict[str, list[int]] = {}
    for record in batch.records if batch else ():
        found.setdefault(str(record.topic()), []).append(record.timestamp()[1])
    if batch:
        assert {topic: end - start for topic, (start, end) in batch.ranges.items()} == {
            topic: len(times) for topic, times in found.items()
        }
    return found


def test_a_topic_whose_next_record_is_not_known_is_waited_for() -> None:
    partition = owned()
    put(partition, A, 1, 2, 3)
    assert taken(partition) == {}
    partition.at_end.add(B)
    assert taken(partition) == {A: [1, 2, 3]}


def test_a_topic_that_is_ahead_waits_until_the_other_one_has_come_after() -> None:
    partition = owned()
    put(partition, B, 5, 100, 200)
    put(partition, A, 1, 2, 30)
    partition.at_end.add(B)
    assert taken(partition) == {A: [1, 2, 30], B: [5]}
    put(partition, A, 150)
    assert taken(partition) == {A: [150], B: [100]}
    partition.at_end.add(A)
    assert taken(partition) == {B: [200]}


def test_what_is_behind_is_taken_though_its_times_are_in_disorder() -> None:
    partition = owned()
    put(partition, A, 9, 3, 5)
    put(partition, B, 4, 50)
    assert taken(partition) == {A: [9, 3, 5], B: [4]}


def test_a_batch_of_several_topics_spans_no_more_than_it_may() -> None:
    partition = owned(span_ms=10)
    put(partition, A, 0, 5, 20, 40)
    put(partition, B, 3, 12)
    partition.at_end |= {A, B}
    assert taken(partition) == {A: [0, 5], B: [3]}
    assert taken(partition) == {A: [20], B: [12]}
    assert taken(partition) == {A: [40]}


@pytest.mark.parametrize("times", [[1], [7, 1, 3], [10**15, 1]])
def test_every_turn_takes_something(times: list[int]) -> None:
    """Whatever the clocks of the producers said."""
    partition = owned(span_ms=1)
    put(partition, A, *times)
    put(partition, B, *reversed(times), 10**15)
    left = 2 * len(times) + 1
    while left:
        found = sum(map(len, taken(partition).values()))
        assert found
        left -= found
        if not partition.pending.keys() >= {A, B}:
            partition.at_end |= {A, B} - partition.pending.keys()
