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


def test_a_topic_that_was_held_back_is_fetched_again_though_no_other_one_has_anything_to_say() -> None:
    partition = owned()
    put(partition, A, *range(11))
    assert partition.hold_back(10) == ({A}, set()), "B may have to come first"
    partition.at_end.add(B)
    assert partition.hold_back(10) == (set(), set()), "it is not folded yet"
    assert taken(partition) == {A: list(range(11))}
    assert partition.hold_back(10) == (set(), {A})
    put(partition, A, *range(11, 33))
    assert partition.hold_back(10) == (set(), set()), "all of it is folded next"


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


def rebuilding(*course: dict[str, tuple[int, int]], committed: int = 100) -> Owned:
    """A partition whose state is lost, and the batches in which its records were folded at first."""
    partition = Owned(1, Mode.REBUILD, {A: 0, B: 0}, {A: committed, B: committed})
    partition.course = iter(course)
    return partition


def order(partition: Owned) -> list[tuple[str, int]]:
    """Topic and offset of the records that are folded now."""
    batch = partition.take()
    return [(str(record.topic()), record.offset()) for record in batch.records] if batch else []


def test_a_rebuild_folds_as_it_was_folded_whatever_the_times_say() -> None:
    partition = rebuilding({B: (0, 1)}, {A: (0, 2), B: (1, 2)}, {A: (2, 3)})
    put(partition, A, 1, 2, 3)
    put(partition, B, 900, 1000)
    assert order(partition) == [(B, 0), (A, 0), (A, 1), (B, 1), (A, 2)]


def test_a_batch_that_has_not_all_come_is_waited_for_in_its_order() -> None:
    partition = rebuilding({A: (0, 2), B: (0, 1)}, {B: (1, 2)})
    put(partition, A, 1)
    put(partition, B, 1, 2)
    assert order(partition) == []
    put(partition, A, 2)
    assert order(partition) == [(A, 0), (A, 1), (B, 0), (B, 1)]


def test_a_topic_that_is_held_back_is_folded_first_and_the_rest_of_the_batch_follows() -> None:
    partition = rebuilding({A: (0, 4), B: (0, 1)})
    put(partition, A, 1, 2)
    put(partition, B, 1)
    partition.paused.add(A)
    assert order(partition) == [(A, 0), (A, 1)]
    partition.paused.discard(A)
    assert order(partition) == []
    put(partition, A, 3, 4)
    assert order(partition) == [(A, 2), (A, 3), (B, 0)]


def test_what_was_folded_before_the_oldest_batch_that_is_told_comes_in_step() -> None:
    partition = rebuilding({A: (2, 3), B: (1, 2)})
    put(partition, A, 10, 20, 5)
    put(partition, B, 15, 1)
    assert order(partition) == [(A, 0), (B, 0)]
    assert order(partition) == [(A, 1)]
    assert order(partition) == [(A, 2), (B, 1)]


def test_behind_the_last_batch_that_is_told_records_come_in_step_up_to_what_is_committed() -> None:
    partition = rebuilding({A: (0, 1)}, committed=2)
    put(partition, A, 1, 2, 3)
    partition.at_end |= {A, B}
    assert order(partition) == [(A, 0)]
    assert order(partition) == [(A, 1)]
    assert partition.course is None


def test_a_rebuild_that_goes_on_skips_what_is_in_the_state() -> None:
    partition = Owned(1, Mode.REBUILD, {A: 2, B: 1}, {A: 9, B: 9})
    partition.course = iter([{A: (0, 1), B: (0, 1)}, {A: (1, 3), B: (1, 2)}])
    put(partition, A, 1)
    put(partition, B, 1)
    assert order(partition) == [(A, 2), (B, 1)]
