"""What `onecount generate` makes: the same for the same seed, with every trouble, and nothing refused by accident."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest

from app.contract.events import Accepted, Rejection, decode_event
from app.contract.reasons import BEYOND_CORRECTION_HORIZON, EVENT_REASONS, SCHEMA_REASONS
from app.generate import FAULTS, DeliveryError, Generated, Mix, events, owner_partition, produce, producer_properties
from app.generate.events import LONGEST_STORY_MS
from app.generate.faults import invalid_record
from app.generate.owner import murmur2
from app.generate.scene import open_scene
from app.policy.load import load_policy
from app.policy.model import ClickIds, Policy
from app.settings import Settings

START_MS = 1_764_000_000_000
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("deploy/policy.yaml")[0]


@pytest.fixture(scope="module")
def stream(policy: Policy) -> list[Generated]:
    """Ten minutes and more of a stream that is slow enough for everything in it to come to its end."""
    return list(events(11, 60_000, START_MS, policy, Mix(users=2_000), events_per_s=100))


def judge(record: Generated, policy: Policy) -> Accepted | Rejection:
    bounds = policy.bounds
    return decode_event(
        record.value,
        record.key,
        record.timestamp_ms,
        policy.platforms(),
        bounds.max_event_age_ms,
        bounds.max_clock_skew_ms,
    )


@pytest.fixture(scope="module")
def sound(stream: list[Generated], policy: Policy) -> list[tuple[Generated, Accepted]]:
    """The stream's records that are not meant to be refused, judged."""
    judged = [(record, judge(record, policy)) for record in stream if not record.kind.startswith("invalid/")]
    assert [(record.kind, verdict) for record, verdict in judged if isinstance(verdict, Rejection)] == []
    return judged


def digest(records: Iterator[Generated]) -> str:
    return hashlib.sha256(repr(list(records)).encode()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(policy: Policy) -> None:
    first = digest(events(1, 5_000, START_MS, policy))
    assert digest(events(1, 5_000, START_MS, policy)) == first
    assert digest(events(2, 5_000, START_MS, policy)) != first


def test_exactly_as_many_records_come_as_are_asked_for(policy: Policy) -> None:
    for count in (0, 1, 7, 4_097):
        assert len(list(events(3, count, START_MS, policy))) == count


def test_streams_of_different_seeds_share_no_event_id(policy: Policy) -> None:
    def ids(seed: int) -> set[str]:
        return {
            json.loads(record.value)["event_id"]
            for record in events(seed, 2_000, START_MS, policy, Mix(invalid=0))
            if record.value
        }

    assert not ids(1) & ids(2)


def test_every_kind_of_event_and_trouble_is_there(stream: list[Generated]) -> None:
    kinds = Counter(record.kind for record in stream)
    expected = {
        *("view", "click", "engaged_view", "visit", "late_click", "conversion", "conversion_without_platform"),
        *(
            "unknown_action",
            "second_report",
            "page_report",
            "other_platform_report",
            "reused_order_id",
            "empty_order_id",
        ),
        *("retract", "restate", "early_adjustment", "second_adjustment", "preceding_adjustment"),
        *("repeat", "retry", "foreign"),
    }
    assert expected <= set(kinds), expected - set(kinds)


def test_sound_events_keep_the_contract_whatever_happened_to_them(sound: list[tuple[Generated, Accepted]]) -> None:
    types = Counter(judged.event.event_type for _, judged in sound)
    assert set(types) == {"view", "click", "engaged_view", "visit", "conversion", "adjustment"}


def test_every_platform_and_every_action_of_the_policy_is_there(
    sound: list[tuple[Generated, Accepted]], policy: Policy
) -> None:
    touched = {judged.event.platform for _, judged in sound if judged.event.event_type == "click"}
    names = {judged.event.conversion_name for _, judged in sound if judged.event.event_type == "conversion"}
    version = policy.versions[-1]
    assert touched == set(version.platforms)
    assert names > set(version.actions)
    assert len(names - set(version.actions)) == 1


@pytest.mark.parametrize("name", FAULTS)
def test_an_invalid_event_is_refused_for_its_reason(name: str, policy: Policy) -> None:
    record = invalid_record(open_scene(5, policy, Mix(users=10)), START_MS, user=0, ad=0, name=name)
    judged = judge(record, policy)
    if name == "beyond_correction_horizon":
        # Sound by itself: it is its partition's stream time that makes it too late.
        assert isinstance(judged, Accepted)
        assert judged.time_ms < START_MS - policy.bounds.correction_horizon_ms
        return
    assert isinstance(judged, Rejection), judged
    assert judged.reason == FAULTS[name].reason


def test_there_is_a_fault_for_every_reason_that_a_producer_can_cause() -> None:
    assert {fault.reason for fault in FAULTS.values()} == set(EVENT_REASONS) - set(SCHEMA_REASONS), "it writes JSON"
    assert FAULTS["beyond_correction_horizon"].reason == BEYOND_CORRECTION_HORIZON


def test_invalid_events_come_in_a_stream_and_each_for_its_reason(stream: list[Generated], policy: Policy) -> None:
    spoiled = [record for record in stream if record.kind.startswith("invalid/")]
    assert 0.005 < len(spoiled) / len(stream) < 0.02
    for record in spoiled:
        judged = judge(record, policy)
        name = record.kind.removeprefix("invalid/")
        if name != "beyond_correction_horizon":
            assert isinstance(judged, Rejection), record.kind
            assert judged.reason == FAULTS[name].reason, record.kind


def test_a_repeat_comes_1_to_46_s_later_with_other_bytes_and_the_same_id(
    sound: list[tuple[Generated, Accepted]], stream: list[Generated]
) -> None:
    first: dict[tuple[str | None, ...], tuple[Generated, Accepted]] = {}
    repeats = 0
    for record, judged in sound:
        key = (judged.event.event_type, judged.event.event_id, judged.event.reported_by)
        if record.kind == "repeat":
            original, before = first[key]
            repeats += 1
            assert 1_000 <= judged.time_ms - before.time_ms <= 46_000
            assert 1_000 <= record.timestamp_ms - original.timestamp_ms <= 46_000
            assert record.value != original.value
        else:
            first.setdefault(key, (record, judged))
    assert 0.01 < repeats / len(stream) < 0.03


def test_a_retry_is_the_same_record_byte_for_byte(stream: list[Generated]) -> None:
    seen = {(record.key, record.value, record.timestamp_ms) for record in stream if record.kind != "retry"}
    retries = [record for record in stream if record.kind == "retry"]
    assert retries
    assert all((record.key, record.value, record.timestamp_ms) in seen for record in retries)


def test_some_late_clicks_arrive_after_a_conversion_that_they_precede(sound: list[tuple[Generated, Accepted]]) -> None:
    converted: dict[tuple[str, str], list[int]] = {}
    late = overtaken = 0
    for record, judged in sound:
        owner = (judged.event.advertiser_id, judged.event.user_id)
        if judged.event.event_type == "conversion":
            converted.setdefault(owner, []).append(judged.time_ms)
        elif record.kind == "late_click":
            late += 1
            assert 1_000 <= record.timestamp_ms - judged.time_ms <= 30 * MINUTE_MS + 3_000
            overtaken += any(time_ms > judged.time_ms for time_ms in converted.get(owner, ()))
    assert late > 100
    assert overtaken > late / 4


def test_an_order_reported_twice_has_two_event_ids_within_a_minute(sound: list[tuple[Generated, Accepted]]) -> None:
    orders: dict[tuple[str, str, str], dict[str, int]] = {}
    for _, judged in sound:
        event = judged.event
        if event.event_type == "conversion" and event.order_id:
            orders.setdefault((event.user_id, event.conversion_name, event.order_id), {})[event.event_id] = (
                judged.time_ms
            )
    reported_twice = [sorted(times.values()) for times in orders.values() if len(times) > 1]
    assert 0.2 < len(reported_twice) / len(orders) < 0.5
    assert sum(times[-1] - times[0] <= 2 * MINUTE_MS for times in reported_twice) == len(reported_twice)


def test_pages_report_orders_whose_order_id_their_servers_tell_within_a_minute(
    sound: list[tuple[Generated, Accepted]],
) -> None:
    pages = {judged.event.event_id: judged for _, judged in sound if judged.event.reported_by == "browser"}
    told = {
        judged.event.event_id: judged
        for _, judged in sound
        if judged.event.event_id in pages and judged.event.reported_by is None
    }
    assert pages
    assert len(told) > len(pages) * 0.9, "all but those at the stream's end"
    assert all(judged.event.order_id is None for judged in pages.values())
    assert all(judged.event.order_id is not None for judged in told.values())
    assert all(abs(judged.time_ms - pages[event_id].time_ms) <= 2 * MINUTE_MS for event_id, judged in told.items())


def test_an_order_id_is_now_and_then_another_users(sound: list[tuple[Generated, Accepted]]) -> None:
    users: dict[str, set[str]] = {}
    for _, judged in sound:
        if judged.event.event_type == "conversion" and judged.event.order_id:
            users.setdefault(judged.event.order_id, set()).add(judged.event.user_id)
    assert any(len(owners) > 1 for owners in users.values())


def test_adjustments_come_early_twice_and_before_their_order_in_time(sound: list[tuple[Generated, Accepted]]) -> None:
    reports: dict[str, tuple[int, int]] = {}  # of an order, by event_id and order_id: position, event time
    for position, (_, judged) in enumerate(sound):
        if judged.event.event_type == "conversion":
            for name in filter(None, (judged.event.event_id, judged.event.order_id)):
                reports.setdefault(name, (position, judged.time_ms))
    found = Counter()
    for position, (record, judged) in enumerate(sound):
        order = reports.get(judged.event.order_id or judged.event.conversion_event_id)
        if order and record.kind in ("early_adjustment", "preceding_adjustment"):
            found[record.kind, "arrives first"] += position < order[0]
            found[record.kind, "is older"] += judged.time_ms < order[1]
    assert found["early_adjustment", "arrives first"] > 0
    assert found["early_adjustment", "is older"] == 0
    assert found["preceding_adjustment", "is older"] > 0
    assert found["preceding_adjustment", "arrives first"] == 0


def test_some_times_are_rfc_3339(sound: list[tuple[Generated, Accepted]], stream: list[Generated]) -> None:
    texts = [judged.event.event_time for _, judged in sound if isinstance(judged.event.event_time, str)]
    assert 0.03 < len(texts) / len(stream) < 0.08
    assert any(text.endswith("Z") for text in texts)
    assert any(text[-6] in "+-" for text in texts)


def test_foreign_records_have_a_null_key_or_their_users(stream: list[Generated]) -> None:
    foreign = [record for record in stream if record.foreign]
    assert 0.001 < len(foreign) / len(stream) < 0.004
    assert {record.key is None for record in foreign} == {True, False}
    assert all(record.key in (None, record.user) for record in foreign)


def test_users_are_unevenly_busy(stream: list[Generated]) -> None:
    busiest = Counter(record.user for record in stream).most_common()
    assert busiest[0][1] > 20 * busiest[len(busiest) // 2][1]


def test_a_stream_ends_with_what_was_still_under_way(stream: list[Generated]) -> None:
    newest_ms = max(record.timestamp_ms for record in stream)
    assert newest_ms <= START_MS + 600 * 1000 + LONGEST_STORY_MS
    assert stream[-1].kind not in ("view", "click", "engaged_view")


def test_no_sound_event_is_younger_than_its_record(sound: list[tuple[Generated, Accepted]]) -> None:
    assert all(judged.time_ms <= record.timestamp_ms for record, judged in sound)


def test_an_impossible_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats must lie between 0 and 1"):
        Mix(repeats=2)
    with pytest.raises(ValueError, match="users must be at least 1"):
        Mix(users=0)
    with pytest.raises(ValueError, match="nothing would be generated"):
        Mix(views=0, clicks=0, engaged_views=0, visits=0, conversions=0, invalid=0)


def test_a_mix_without_trouble_has_none(policy: Policy) -> None:
    calm = Mix(invalid=0, repeats=0, retries=0, foreign=0, late_clicks=0, rfc3339_times=0, conversions=0)
    kinds = {record.kind for record in events(1, 5_000, START_MS, policy, calm)}
    assert kinds == {"view", "click", "engaged_view", "visit"}


@pytest.mark.parametrize(
    ("text", "expected"),
    # The vectors of Kafka's own UtilsTest.
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_javas(text: bytes, expected: int) -> None:
    assert murmur2(text) == expected & 0xFFFFFFFF


def test_the_owner_is_what_the_producers_partitioner_gives() -> None:
    assert owner_partition(b"foobar", 10, "murmur2") == (-790332482 & 0x7FFFFFFF) % 10
    assert owner_partition(b"foobar", 10, "crc32") == zlib.crc32(b"foobar") % 10


class FakeProducer:
    """Takes records as confluent_kafka's producer does; fails those that it is told to, and is full now and then."""

    def __init__(self, partitions: int = 4, fail_every: int = 0, full_every: int = 0, left: int = 0) -> None:
        self.records: list[tuple] = []
        self.partitions = partitions
        self.fail_every = fail_every
        self.full_every = full_every
        self.left = left
        self.calls = 0
        self.unreported = 0
        self.topics = ("ads.events",)

    def open(self, settings: Settings, partitioner: str, on_failure) -> "FakeProducer":
        self.on_failure = on_failure
        return self

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(
            topics={name: SimpleNamespace(partitions=dict.fromkeys(range(self.partitions))) for name in self.topics}
        )

    def produce(self, topic, value, key, partition, on_delivery, _, timestamp_ms) -> None:
        self.calls += 1
        if self.full_every and self.calls % self.full_every == 0:
            raise BufferError
        self.records.append((topic, value, key, partition, timestamp_ms))
        if self.fail_every and len(self.records) % self.fail_every == 0:
            self.unreported += 1

    def poll(self, timeout: float) -> int:
        for _ in range(self.unreported):
            self.on_failure(SimpleNamespace(str=lambda: "the broker is gone"), None)
        self.unreported = 0
        return 0

    def flush(self, timeout: float) -> int:
        self.poll(timeout)
        return self.left


def test_the_loop_sends_what_the_generator_gives(policy: Policy) -> None:
    fake = FakeProducer()
    seen = []
    result = produce(
        Settings(), policy, seed=4, count=3_000, start_ms=START_MS, on_progress=seen.append, open_with=fake.open
    )
    expected = [(record.value, record.timestamp_ms) for record in events(4, 3_000, START_MS, policy)]
    assert [(value, timestamp_ms) for _, value, _, _, timestamp_ms in fake.records] == expected
    assert (result.sent, result.delivered, result.failed) == (3_000, 3_000, 0)
    assert sum(result.kinds.values()) == 3_000
    assert seen[-1] is result


def test_the_loop_puts_foreign_records_on_a_partition_of_somebody_else(policy: Policy) -> None:
    fake = FakeProducer(partitions=3)
    produce(
        Settings(),
        policy,
        seed=4,
        count=2_000,
        mix=Mix(foreign=0.2, repeats=0, retries=0),
        start_ms=START_MS,
        open_with=fake.open,
    )
    placed = 0
    for _, value, _, partition, _ in fake.records:
        if partition >= 0:
            placed += 1
            assert partition != owner_partition(json.loads(value)["user_id"].encode(), 3, "murmur2")
    assert placed > 200


def test_the_loop_counts_failed_deliveries_and_their_reasons(policy: Policy) -> None:
    fake = FakeProducer(fail_every=100, left=3)
    result = produce(Settings(), policy, count=1_000, start_ms=START_MS, open_with=fake.open)
    assert result.failed == 13
    assert result.delivered == 987
    assert result.failures == {"the broker is gone": 10, "not acknowledged within 60 s": 3}


def test_the_loop_waits_while_the_queue_is_full(policy: Policy) -> None:
    fake = FakeProducer(full_every=50)
    result = produce(Settings(), policy, count=1_000, start_ms=START_MS, open_with=fake.open)
    assert result.sent == len(fake.records) == 1_000


def test_the_loop_spreads_records_over_several_topics(policy: Policy) -> None:
    fake = FakeProducer()
    fake.topics = ("web.events", "app.events")
    produce(Settings(events_topics=fake.topics), policy, count=100, start_ms=START_MS, open_with=fake.open)
    assert Counter(topic for topic, *_ in fake.records) == {"web.events": 50, "app.events": 50}


def test_the_loop_keeps_to_the_rate_with_the_time_of_now(policy: Policy) -> None:
    fake = FakeProducer()
    result = produce(Settings(), policy, rate=2_000, duration_s=0.5, open_with=fake.open)
    assert 500 <= result.sent <= 2_000 * result.seconds  # on a busy machine the half second may be a long one


def test_a_missing_topic_is_named_with_what_to_do(policy: Policy) -> None:
    fake = FakeProducer()
    with pytest.raises(DeliveryError, match=r"no topic elsewhere.*onecount topics create"):
        produce(Settings(events_topics=("elsewhere",)), policy, count=1, open_with=fake.open)


def test_the_producer_is_idempotent_and_spreads_as_the_policy_says() -> None:
    properties = producer_properties(Settings(), "murmur2")
    assert properties["enable.idempotence"] is True
    assert properties["acks"] == "all"
    assert properties["partitioner"] == "murmur2_random"
    assert producer_properties(Settings(), "crc32")["partitioner"] == "consistent_random"


def test_where_clicks_are_matched_some_conversions_name_only_one(policy: Policy) -> None:
    bounds = msgspec.structs.replace(policy.bounds, click_ids=ClickIds())
    stream = list(events(11, 60_000, START_MS, msgspec.structs.replace(policy, bounds=bounds), Mix(users=2_000)))
    said = [(each, json.loads(each.value)) for each in stream if each.value and not each.kind.startswith("invalid/")]
    clicks = {event["click_id"]: event for _, event in said if event["event_type"] == "click"}
    userless = [(record, event, clicks.get(event["click_id"])) for record, event in said if "user_id" not in event]
    assert {event["event_type"] for _, event, _ in userless} == {"conversion", "adjustment"}
    assert 0 < sum(click is None for _, _, click in userless) < len(userless) / 10, "a few name one that never comes"
    for record, event, click in userless:
        assert record.key is None
        assert click is None or event.get("platform") in (None, click["platform"])
        assert click is None or click["user_id"].encode() == record.user
