"""Stories in which the engine once gave another answer than the oracle, or in which the generated ones seldom end up."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from app.columns.table import StateDamaged
from app.contract.events import TOUCH_ATTRIBUTES
from app.engine.fold import Command
from app.policy.model import Action, Bounds, Platform, Policy, Version
from tests.memory.deployment import Deployment, deployed
from tests.memory.kafka import MemoryConsumer
from tests.memory.redis import MemoryStore
from tests.property.checks import differences
from tests.property.policies import FOREVER_MS, START_MS, UNIT_MS

BOUNDS = Bounds(
    keep=TOUCH_ATTRIBUTES,
    correction_horizon_ms=8 * UNIT_MS,
    max_event_age_ms=FOREVER_MS,
    dedup_window_ms=4 * UNIT_MS,
    order_window_ms=10 * UNIT_MS,
    adjustment_window_ms=4 * UNIT_MS,
)
POLICY = Policy(
    BOUNDS,
    (
        Version(
            1,
            0,
            {"meta": Platform("click_then_view", {"click": 8 * UNIT_MS, "view": UNIT_MS}, {})},
            {
                "purchase": Action("macro", "hard", "revenue", "every", None),
                "signup": Action("micro", "soft", "retention", "one", 5_000_000),
            },
        ),
    ),
)


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """Two counters and two aggregators over one partition, at rest before anything came."""
    with deployed(Deployment(POLICY, counters=2, aggregators=2)) as found:
        yield found


def send(
    deployment: Deployment,
    kind: str,
    event_id: str,
    at: float,
    topic: str = "ads.events",
    written: float | None = None,
    **fields: Any,
) -> None:
    """One event of the user ann, at so many steps of the grid; its record is of then, or `written` at another time."""
    event = {"event_id": event_id, "event_type": kind, "event_time": START_MS + round(at * UNIT_MS)}
    event |= {"advertiser_id": "shop", "user_id": "ann"} | fields
    if kind in ("view", "click", "engaged_view"):
        event = {"platform": "meta", "campaign_id": "c1"} | event
    if kind == "conversion":
        event = {"conversion_name": "purchase"} | event
    value = json.dumps(event).encode()
    written_ms = event["event_time"] if written is None else START_MS + round(written * UNIT_MS)
    deployment.broker.append(topic, 0, value=value, timestamp=written_ms)


def rows(deployment: Deployment) -> dict[str, tuple[str, float]]:
    """Status and value by event id, as published last."""
    found = [json.loads(message.value()) for message in deployment.broker.committed("conversions.attributed")]
    return {row["event_id"]: (row["status"], row["value"]) for row in found}


def letters(deployment: Deployment) -> list[str]:
    """The reasons of the dead letters, in their order."""
    return [json.loads(message.value())["reason"] for message in deployment.broker.committed("ads.events.dlq")]


def assert_exact(deployment: Deployment) -> None:
    """Lets everything be counted, and compares it with the oracle's answer."""
    deployment.drain()
    found = differences(deployment)
    assert not found, "\n".join(found)


def test_a_rebuild_that_was_interrupted_goes_on(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "conversion", "c1", 1)
    deployment.turn("counter-0")
    deployment.empty_redis("counter")
    deployment.turn("counter-0")  # ends the session: the state is gone
    deployment.turn("counter-0", grant=1)  # rebuilds half of it
    deployment.forget(deployment.workers["counter-0"].session)
    deployment.turn("counter-1")
    assert_exact(deployment)


def test_one_conversion_twice_in_one_batch_counts_once_however_far_the_stream_time_moved_between(
    deployment: Deployment,
) -> None:
    send(deployment, "click", "k1", 4)
    send(deployment, "conversion", "c1", 5, value=3)
    send(deployment, "visit", "v1", 12, page="/")  # so far that the id of c1 is remembered no more, but c1 is held
    send(deployment, "conversion", "c1", 6, value=4)
    assert_exact(deployment)


@pytest.mark.parametrize("grant", [None, 1, 2])
def test_of_one_touch_that_was_counted_twice_the_first_is_credited(deployment: Deployment, grant: int | None) -> None:
    send(deployment, "click", "k1", 5, campaign_id="first")
    send(deployment, "visit", "v1", 12, page="/")  # so far that the id of k1 is remembered no more
    send(deployment, "click", "k1", 5, campaign_id="second")
    send(deployment, "conversion", "c1", 12)
    send(deployment, "conversion", "c2", 12.5)
    for _ in range(6):
        deployment.turn("counter-0", grant)
    assert_exact(deployment)


def test_adjustments_of_one_id_and_different_conversion_names_are_two(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "conversion", "c1", 1, order_id="o1", value=3)
    send(deployment, "conversion", "c2", 1, order_id="o2", value=3, conversion_name="signup")
    send(deployment, "adjustment", "a1", 2, adjustment="retract", order_id="o1", conversion_name="purchase")
    send(deployment, "adjustment", "a1", 2, adjustment="retract", order_id="o2", conversion_name="signup")
    assert_exact(deployment)
    assert rows(deployment) == {"c1": ("retracted", 0), "c2": ("retracted", 0)}


def test_an_adjustment_concerns_only_the_action_that_it_names(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    for name in ("purchase", "signup"):
        send(deployment, "conversion", f"c-{name}", 1, order_id="o", value=3, conversion_name=name)
    send(deployment, "adjustment", "a1", 2, adjustment="retract", order_id="o", conversion_name="signup")
    send(deployment, "adjustment", "a2", 2, adjustment="restate", order_id="o", conversion_name="purchase", value=1)
    assert_exact(deployment)
    assert rows(deployment) == {"c-purchase": ("counted", 1), "c-signup": ("retracted", 0)}
    assert letters(deployment) == []


def test_a_restatement_in_another_currency_has_a_letter_and_changes_nothing(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "conversion", "c1", 1, order_id="o", value=500, currency="EUR")
    send(deployment, "adjustment", "a1", 2, adjustment="restate", order_id="o", value=450, currency="USD")
    assert_exact(deployment)
    assert (rows(deployment), letters(deployment)) == ({"c1": ("counted", 500)}, ["adjustment_in_another_currency"])
    send(deployment, "adjustment", "a2", 3, adjustment="restate", order_id="o", value=400, currency="EUR")
    assert_exact(deployment)
    assert (rows(deployment), len(letters(deployment))) == ({"c1": ("counted", 400)}, 1)


def test_adjustments_are_judged_alike_after_a_rebuild(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "adjustment", "a1", 2, adjustment="restate", order_id="o", value=450, currency="USD")
    send(deployment, "adjustment", "a2", 2, adjustment="retract", order_id="o", conversion_name="signup")
    send(deployment, "conversion", "c1", 1, order_id="o", value=500, currency="EUR")
    assert_exact(deployment)
    deployment.empty_redis("counter")
    assert_exact(deployment)
    assert (rows(deployment), letters(deployment)) == ({"c1": ("counted", 500)}, ["adjustment_in_another_currency"])


def test_a_watermark_that_an_idle_clock_moved_far_ahead_of_the_events_forgets_no_counts(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    for name in deployment.workers:
        deployment.turn(name)
    deployment.clock_ms = START_MS + FOREVER_MS  # old events are replayed, and for a while none come
    deployment.idle("counter-0")
    deployment.turn("aggregator-0")
    send(deployment, "click", "k2", 0)
    assert_exact(deployment)


def test_a_redis_that_lost_its_last_second_gives_no_revision_twice(deployment: Deployment) -> None:
    send(deployment, "conversion", "c1", 1)
    for name in deployment.workers:
        deployment.turn(name)
    disk = deployment.memory.copy()
    for at in (0.2, 0.4, 0.6):  # each click is a better one, and a batch of its own
        send(deployment, "click", f"k{at}", at)
        for name in deployment.workers:
            deployment.turn(name)
    deployment.memory.fall_back(disk)
    send(deployment, "click", "k", 0.8)
    assert_exact(deployment)


@pytest.mark.parametrize("grant", [None, 1, 3])
def test_a_rebuild_reads_no_topic_ahead_of_another_one(grant: int | None) -> None:
    """The few events of weeks of a quiet topic are read at once; if they were folded at once, all others would be too late."""
    topics = "ads.events", "ads.more"
    with deployed(Deployment(POLICY, counters=2, aggregators=2, events_topics=topics)) as deployment:
        for at in range(40):
            send(deployment, "click", f"k{at}", at)
            send(deployment, "conversion", f"c{at}", at + 0.5)
            for name in deployment.workers:
                deployment.turn(name)
        send(deployment, "click", "k", 41, topic="ads.more")
        assert_exact(deployment)
        deployment.memory.empty()
        send(deployment, "click", "l", 41.5)
        for _ in range(200):
            deployment.turn("counter-0", grant, rotation=1)
        assert_exact(deployment)


@pytest.mark.parametrize("tag", [b"{c0}", b"{a0}"], ids=["counter", "aggregator"])
@pytest.mark.parametrize("part", ["begins", "half", "all but the end", "all"])
def test_a_write_that_redis_took_back_and_ran_later_after_all_is_found_out(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tag: bytes, part: str
) -> None:
    """What Redis 7.0 makes of a torn append-only file when it starts for the second time."""
    writes: list[list[Command]] = []
    run = MemoryStore._exec

    def recorded(store: MemoryStore) -> list[Any] | None:
        writes.append(list(store.queue or ()))
        return run(store)

    monkeypatch.setattr(MemoryStore, "_exec", recorded)
    send(deployment, "conversion", "c1", 1)
    for name in deployment.workers:
        deployment.turn(name)
    disk = deployment.memory.copy()
    writes.clear()
    send(deployment, "click", "k1", 0.2)
    send(deployment, "view", "v1", 0.3)
    for name in deployment.workers:
        deployment.turn(name)
    torn = next(commands for commands in writes if str(commands[0][1]).encode().startswith(tag))
    deployment.memory.fall_back(disk)
    writes.clear()
    send(deployment, "click", "k2", 0.4)
    deployment.drain()
    size = {"begins": 1, "half": len(torn) // 2, "all but the end": len(torn) - 1, "all": len(torn)}[part]
    deployment.memory.fall_back(disk)
    again = MemoryStore(deployment.memory)
    again.run(torn[:size])
    for commands in writes:
        again.run(commands)
    deployment.memory.life += 1
    send(deployment, "click", "k3", 0.6)
    assert_exact(deployment)
    discarded = [
        owned.discarded
        for worker in deployment.workers.values()
        if worker.session is not None
        for owned in worker.session.owned.values()
    ]
    assert any(isinstance(why, StateDamaged) for why in discarded)


@pytest.mark.parametrize("loses_state", [False, True])
@pytest.mark.parametrize("role", ["counter", "aggregator"])
def test_a_coordinator_that_has_not_read_all_offsets_yet_is_not_believed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, role: str, loses_state: bool
) -> None:
    send(deployment, "click", "k1", 0)
    deployment.drain()
    topic = "onecount.deltas" if role == "aggregator" else "ads.events"
    places = [TopicPartition(topic, 0), *([TopicPartition("onecount.rekeyed", 0)] if role == "counter" else [])]
    early = deployment.workers[f"{role}-0"].session.consumer.committed(places, 1)  # type: ignore[union-attr]
    disk = deployment.memory.copy()
    send(deployment, "click", "k2", 0.1)
    deployment.drain()
    if loses_state:
        deployment.empty_redis(role)
    else:  # the write of the last batch is lost: M is what the coordinator says C to be
        deployment.memory.fall_back(disk)
    for name in deployment.workers:
        worker = deployment.workers[name]
        assert worker.session is not None
        worker.session.close()
        worker.session = None
    genuine = MemoryConsumer.committed
    said = []

    def committed(consumer: MemoryConsumer, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if asked[0].topic == topic and not said:
            said.append(asked)
            return early
        return genuine(consumer, asked, timeout)

    monkeypatch.setattr(MemoryConsumer, "committed", committed)
    send(deployment, "click", "k3", 0.2)
    deployment.drain()
    assert any("was counted up to" in worker.ended for worker in deployment.workers.values())
    assert_exact(deployment)


def with_version(policy: Policy, effective_at: float, **platforms: Platform) -> Policy:
    """The policy with one more version of the rules."""
    latest = policy.versions[-1]
    version = Version(latest.number + 1, START_MS + round(effective_at * UNIT_MS), platforms, latest.actions)
    return Policy(policy.bounds, (*policy.versions, version))


def change_policy(deployment: Deployment, policy: Policy) -> None:
    """What a new record on the policy topic does: all sessions end, and the next ones judge by it."""
    for worker in deployment.workers.values():
        if worker.session is not None:
            worker.session.close()
            worker.session = None
    deployment.policy = policy


def test_a_longer_window_finds_the_touches_that_were_stored_before(deployment: Deployment) -> None:
    deployment.policy = with_version(POLICY, 0, meta=Platform("click", {"click": 32 * UNIT_MS}, {}))
    send(deployment, "click", "k1", 30)
    deployment.drain()
    change_policy(deployment, with_version(deployment.policy, 34, meta=Platform("click", {"click": 80 * UNIT_MS}, {})))
    send(deployment, "conversion", "c1", 35)
    assert_exact(deployment)


def test_another_method_credits_no_touch_that_none_could_credit_before_it_held(deployment: Deployment) -> None:
    deployment.policy = with_version(POLICY, 0, meta=Platform("click", {"click": UNIT_MS}, {}))
    send(deployment, "engaged_view", "k1", 10)
    deployment.drain()
    both = Platform("click_engaged_view", {"click": UNIT_MS, "engaged_view": 8 * UNIT_MS}, {})
    change_policy(deployment, with_version(deployment.policy, 11, meta=both))
    send(deployment, "conversion", "c1", 12)
    assert_exact(deployment)
