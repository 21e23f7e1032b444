"""docs/counting.md, section 1: who owns a user, and in which order an owner partition processes its events."""

import zlib

import msgspec
import pytest

from app.verify.partition import crc32, murmur2, owner_of
from tests.oracle.cases import (
    DAY,
    MINUTE,
    REKEYED,
    SECOND,
    T0,
    TOPIC,
    answer_in_order,
    click,
    conversion,
    record,
    statuses,
    view,
)

# --- Owners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # from Apache Kafka's own UtilsTest, as signed integers
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_hashes_of_kafkas_own_tests(key, hashed):
    assert murmur2(key) == hashed % 2**32


@pytest.mark.parametrize("key", [b"", b"u", b"user-1", "Zo\u00eb".encode(), bytes(range(256))])
def test_crc32_is_zlibs(key):
    assert crc32(key) == zlib.crc32(key)


def test_a_users_owner_is_the_hash_without_its_sign_modulo_the_partitions():
    assert owner_of("21", 4, "murmur2") == ((-973932308) & 0x7FFFFFFF) % 4 == 0
    assert owner_of("foobar", 7, "crc32") == 0x9EF61F95 % 7


# --- Section 1: processing order --------------------------------------------------------------------------------------
# Which of two records with one identity was first shows in whose campaign counts.


def first_campaign(records, order, **more):
    result = answer_in_order(records, order, **more)
    assert len(result.duplicates) == 1
    return next(iter(result.counts.values())).dimensions["campaign_id"], result.faults


TWO_TOPICS = [
    record(view("v", 0, campaign_id="from a"), 3, topic="a.events", timestamp_ms=T0 + 1),
    record(view("v", 0, campaign_id="from b"), 5, topic="b.events", timestamp_ms=T0),
]


def test_without_batches_topics_interleave_by_kafka_timestamp():
    assert first_campaign(TWO_TOPICS, None) == ("from b", [])


def test_without_batches_equal_timestamps_go_by_topic():
    same = [record(view("v", 0, campaign_id=topic), 9, topic=topic) for topic in ("b.events", "a.events")]
    assert first_campaign(same, None) == ("a.events", [])


def test_within_a_topic_partition_the_offset_decides_whatever_the_timestamp():
    records = [
        record(view("v", 0, campaign_id="second"), 1, timestamp_ms=T0),
        record(view("v", 0, campaign_id="first"), 0, timestamp_ms=T0 + SECOND),
    ]
    assert first_campaign(records, None) == ("first", [])


def test_in_one_batch_the_topics_go_by_name():
    assert first_campaign(TWO_TOPICS, {0: [{"b.events": (5, 6), "a.events": (3, 4)}]}) == ("from a", [])


def test_of_several_batches_the_committed_order_decides():
    assert first_campaign(TWO_TOPICS, {0: [{"b.events": (5, 6)}, {"a.events": (3, 4)}]}) == ("from b", [])


def test_batches_may_leave_out_offsets_that_hold_no_record():
    batches = {0: [{"a.events": (0, 4)}, {"b.events": (5, 6)}, {"b.events": (9, 12)}]}
    assert answer_in_order(TWO_TOPICS, batches).faults == []


@pytest.mark.parametrize(
    ("batches", "fault"),
    [
        ([{"ads.events": (0, 1)}, {"ads.events": (2, 3)}], "ads.events/0: offsets 1 to 1 lie in no batch"),
        ([{"ads.events": (0, 2)}, {"ads.events": (1, 3)}], "ads.events/0: offset 1 lies in two batches"),
        ([{"ads.events": (0, 2)}], "ads.events/0: no batch reaches offset 2 and beyond"),
        ([], "ads.events/0: no batch reaches offset 0 and beyond"),
    ],
)
def test_batches_that_skip_or_repeat_a_record_are_a_fault_and_every_record_still_counts_once(batches, fault):
    records = [record(view(f"v{offset}", 0), offset) for offset in range(3)]
    result = answer_in_order(records, {0: batches})
    assert result.faults == [fault]
    assert (result.accepted, len(result.duplicates)) == (3, 0)


def test_a_batch_must_take_refused_records_too():
    assert answer_in_order([record(b"{", 0)], {0: []}).faults == ["ads.events/0: no batch reaches offset 0 and beyond"]


# --- Section 1: events on a partition that does not own their user -----------------------------------------------------

HERE = owner_of("u", 2, "murmur2")
ELSEWHERE = 1 - HERE


def copy_of(raw, offset, **changes):
    home = {"topic": REKEYED, "partition": HERE, "offset": offset, "source": raw.coordinates}
    return msgspec.structs.replace(raw, **(home | changes))


def test_a_foreign_event_is_counted_with_its_owners_events():
    stray = record(click("k", 0), 0, partition=ELSEWHERE)
    records = [stray, copy_of(stray, 0), record(conversion("x", MINUTE), 0, partition=HERE)]
    result = answer_in_order(records, None, REKEYED, partitions=2)
    assert statuses(result) == {("meta", "x"): "counted"}
    assert (result.produced, result.accepted, result.faults) == (2, 2, [])


def test_a_foreign_event_is_a_duplicate_of_its_repeat_at_home():
    stray = record(click("k", 0), 0, partition=ELSEWHERE)
    result = answer_in_order(
        [stray, record(click("k", 0), 0, partition=HERE), copy_of(stray, 0)],
        {HERE: [{TOPIC: (0, 1)}, {REKEYED: (0, 1)}], ELSEWHERE: [{TOPIC: (0, 1)}]},
        REKEYED,
        partitions=2,
    )
    assert (result.duplicates, result.faults) == ({(TOPIC, ELSEWHERE, 0)}, [])


def test_a_foreign_event_does_not_move_the_stream_time_where_it_was_found():
    other = next(f"u{n}" for n in range(99) if owner_of(f"u{n}", 2, "murmur2") == ELSEWHERE)
    stray = record(view("v", 8 * DAY), 0, partition=ELSEWHERE)
    resident = record(view("w", 0, user_id=other), 1, partition=ELSEWHERE)
    assert answer_in_order([stray, copy_of(stray, 0), resident], None, REKEYED, partitions=2).rejected == {}


def test_a_copy_that_its_owner_refuses_is_refused_under_its_first_coordinates():
    stray = record(view("v", 0), 4, partition=ELSEWHERE)
    ahead = record(view("w", 8 * DAY), 0, partition=HERE)
    order = {HERE: [{TOPIC: (0, 1)}, {REKEYED: (0, 1)}], ELSEWHERE: [{TOPIC: (4, 5)}]}
    result = answer_in_order([stray, ahead, copy_of(stray, 0)], order, REKEYED, partitions=2)
    assert result.rejected == {(TOPIC, ELSEWHERE, 4): "beyond_correction_horizon"}


def test_a_foreign_event_without_a_copy_is_a_fault_and_is_counted_all_the_same():
    stray = record(view("v", 0), 4, partition=ELSEWHERE)
    result = answer_in_order([stray], None, REKEYED, partitions=2)
    assert result.faults == [f"ads.events/{ELSEWHERE}/4: belongs on partition {HERE}, and has no copy in {REKEYED}"]
    assert result.accepted == 1


def test_without_a_topic_of_copies_a_foreign_event_needs_none():
    stray = record(view("v", 0), 4, partition=ELSEWHERE)
    assert answer_in_order([stray], None, None, partitions=2).faults == []


@pytest.mark.parametrize(
    "change", [{"source": None}, {"source": (TOPIC, ELSEWHERE, 99)}, {"partition": ELSEWHERE}, {"value": b"{}"}]
)
def test_a_copy_without_its_event_on_a_wrong_partition_or_altered_is_a_fault(change):
    stray = record(view("v", 0), 4, partition=ELSEWHERE)
    assert answer_in_order([stray, copy_of(stray, 0, **change)], None, REKEYED, partitions=2).faults


def test_an_event_copied_twice_is_a_fault_and_counts_once():
    stray = record(view("v", 0), 4, partition=ELSEWHERE)
    result = answer_in_order([stray, copy_of(stray, 0), copy_of(stray, 1)], None, REKEYED, partitions=2)
    assert len(result.faults) == 1
    assert (result.accepted, len(result.duplicates)) == (1, 0)
