"""A rebuild from a log whose old records retention has removed, as it does: what was counted stays as it is.

The log reaches back exactly as far as workers ask for (`Stage.rebuild_ms`), and the last conversions that are held hang on
events of before that.
"""

from typing import Any

import msgspec
import pytest

from app.attribution.state import unpack
from app.contract import rows
from app.policy.model import Policy
from tests.memory.deployment import Deployment, deployed
from tests.property.checks import differences
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import BOUNDS, POLICY, send
from tests.property.test_journey_stories import JOURNEYS
from tests.property.test_journey_stories import POLICY as FOLLOWED
from tests.property.test_rebuilds import lose

Told = tuple[str, str, float, dict[str, Any]]  # kind, event_id, time in steps of the grid, and what else an event says
BOUNDS_OF_12 = msgspec.structs.replace(
    BOUNDS, correction_horizon_ms=2 * UNIT_MS, order_window_ms=10 * UNIT_MS, dedup_window_ms=4
)
PLATFORMS = Policy(BOUNDS_OF_12, POLICY.versions)
EVERYTHING = Policy(
    msgspec.structs.replace(
        BOUNDS_OF_12,
        journeys=msgspec.structs.replace(JOURNEYS, abandoned_actions=("signup",), customer_window_ms=UNIT_MS * 8),
    ),
    POLICY.versions,
)
STORIES: dict[str, list[Told]] = {
    "another report": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"order_id": "o", "value": 5}),
        ("conversion", "x", 8, {"order_id": "o", "value": 5}),
    ],
    "the third report": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"order_id": "o"}),
        ("conversion", "second", 4, {"order_id": "o"}),
        ("conversion", "x", 8, {"order_id": "o"}),
    ],
    "a new order behind the reports of the former": [
        ("conversion", "first", -4, {"order_id": "o"}),
        ("conversion", "second", 5, {"order_id": "o"}),
        ("click", "k", 4, {}),
        ("conversion", "x", 8, {"order_id": "o", "value": 5}),
    ],
    "a repeat of a report whose order lies too far back": [
        ("click", "k", -13, {}),
        ("conversion", "first", -12.8, {"order_id": "o", "platform": "meta"}),
        ("conversion", "x", -3, {"order_id": "o", "platform": "meta"}),
        ("conversion", "x", 8, {"order_id": "o", "platform": "meta"}),
    ],
    "a place that is taken": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"conversion_name": "signup"}),
        ("conversion", "x", 8, {"conversion_name": "signup"}),
    ],
    "a place that is taken by the second": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"conversion_name": "signup"}),
        ("conversion", "second", 2, {"conversion_name": "signup"}),
        ("conversion", "x", 8, {"conversion_name": "signup"}),
    ],
    "a place of an id that was used before what is read back": [
        ("click", "k", -13.5, {}),
        ("conversion", "unknown", -13, {"conversion_name": "signup"}),
        ("click", "k", -4.5, {}),
        ("conversion", "uncounted", -4, {"conversion_name": "signup"}),
        ("click", "k", -2.5, {}),
        ("conversion", "counted", -2, {"conversion_name": "signup"}),
        ("click", "k", 7, {}),
        ("conversion", "x", 8, {"conversion_name": "signup"}),
    ],
    "a place that was freed": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"conversion_name": "signup", "value": 5}),
        ("adjustment", "a", 2, {"adjustment": "retract", "conversion_event_id": "first"}),
        ("conversion", "x", 8, {"conversion_name": "signup", "value": 5}),
    ],
    "another report of what was retracted": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"order_id": "o"}),
        ("adjustment", "a", 2, {"adjustment": "retract", "order_id": "o"}),
        ("conversion", "x", 8, {"order_id": "o"}),
    ],
    "a restatement": [
        ("click", "k", 0, {}),
        ("conversion", "first", 7, {"order_id": "o", "value": 5}),
        ("adjustment", "a", 7.2, {"adjustment": "restate", "order_id": "o", "value": 9}),
        ("conversion", "x", 8, {"order_id": "o", "value": 5}),
    ],
    "a retraction that came first": [
        ("click", "k", 0, {}),
        ("adjustment", "a", 7.4, {"adjustment": "retract", "conversion_event_id": "late"}),
        ("conversion", "late", 7.3, {"order_id": "o"}),
        ("conversion", "x", 8, {"order_id": "o"}),
    ],
    "with and without its platform": [
        ("click", "k", 0, {}),
        ("conversion", "first", 1, {"order_id": "o", "platform": "meta"}),
        ("conversion", "first", 2, {"order_id": "o"}),
        ("conversion", "x", 8, {"order_id": "o"}),
    ],
    "what names a platform without a touch": [
        ("conversion", "first", 1, {"order_id": "o", "platform": "meta"}),
        ("click", "k", 2, {}),
        ("conversion", "x", 8, {"order_id": "o", "platform": "meta"}),
    ],
    "pages, a customer and what was left behind": [
        ("visit", "v", 0.5, {"page": "/"}),
        ("click", "k", 1, {}),
        ("visit", "w", 2, {"page": "/cart"}),
        ("conversion", "first", 3, {"value": 5}),
        ("conversion", "left", 4, {"conversion_name": "signup"}),
        ("visit", "u", 7.2, {"page": "/again"}),
        ("conversion", "x", 8, {"value": 5}),
    ],
}


def remove_old(deployment: Deployment, before: float) -> None:
    """Retention removes the raw records that are older than so many steps of the grid."""
    for (topic, _), log in deployment.broker.logs.items():
        if topic in deployment.settings.events_topics:
            times = [message.timestamp()[1] if message is not None else 0 for message, _ in log.entries]
            log.first = next(at for at, time_ms in enumerate(times) if time_ms >= START_MS + round(before * UNIT_MS))


def published(deployment: Deployment) -> list[tuple[str, bytes | None, bytes | None]]:
    """All that was ever published but the deltas, in which a rebuild says that it changed nothing."""
    settings = deployment.settings
    topics = (settings.attributed_topic, settings.journeys_topic, settings.models_topic, settings.counts_topic)
    return [
        (message.topic(), message.key(), message.value())
        for topic in (*topics, settings.dlq_topic)
        for message in deployment.broker.committed(topic)
    ]


def held(deployment: Deployment) -> set[tuple[str, int]]:
    """The conversions that counters hold, by event id and time."""
    states = [
        unpack(state) for key, found in deployment.memory.values.items() if b":conv:" in key for state in found.values()
    ]
    return {(conversion.event_id, conversion.time_ms) for state in states for conversion in state.conversions}


def rebuild_in_short(deployment: Deployment, before: float) -> None:
    """Retention removes what it may, the counter's state is lost and rebuilt, and nothing is published by that."""
    was = published(deployment)
    remove_old(deployment, before)
    lose(deployment, "counter")
    deployment.drain()
    assert deployment.rebuilt["counter"] == 1
    assert published(deployment) == was


def assert_exact(deployment: Deployment) -> None:
    """Lets everything be counted, and compares it with what the oracle makes of the whole log."""
    deployment.drain()
    for log in deployment.broker.logs.values():
        log.first = 0
    found = differences(deployment)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("policy", [PLATFORMS, FOLLOWED, EVERYTHING], ids=["platforms", "journeys", "both"])
@pytest.mark.parametrize("what", ["touch", "order"])
def test_what_hangs_on_events_that_retention_removed_stays_as_it_was(policy: Policy, what: str) -> None:
    retention = policy.conversion_retention_ms() / UNIT_MS
    window = policy.versions[0].platforms["meta"].windows_ms["click"] / UNIT_MS
    end = window + retention - 0.5
    with deployed(Deployment(policy)) as deployment:
        send(deployment, "visit", "v", 0, page="/")
        if what == "touch":
            send(deployment, "click", "k", 0)
        else:
            send(deployment, "conversion", "first", 0, order_id="o")
        send(deployment, "click", "first kept", end - retention, user_id="bob")
        send(deployment, "conversion", "x", window, order_id="o", value=5)
        deployment.drain()
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, end - retention)
        send(deployment, "click", "after", end, user_id="bob")
        assert_exact(deployment)


@pytest.mark.parametrize("policy", [PLATFORMS, EVERYTHING], ids=["platforms", "journeys"])
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_what_was_published_stands_and_what_comes_then_is_judged_with_it(policy: Policy, story: list[Told]) -> None:
    begin = 7.5
    end = begin + policy.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(policy)) as deployment:
        for kind, event_id, at, fields in story[:-1]:
            send(deployment, kind, event_id, at, **fields)
        send(deployment, "click", "first kept", begin, user_id="bob")
        kind, event_id, at, fields = story[-1]
        send(deployment, kind, event_id, at, **fields)
        deployment.drain()
        send(deployment, "conversion", "y", end - 1, value=3)
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        was = held(deployment)
        rebuild_in_short(deployment, begin)
        assert held(deployment) <= was  # what is tied to nothing that is held goes again
        send(deployment, "click", "late", end - 1.6)  # the user's state is settled once more
        send(deployment, "conversion", "report", end - 1.5, order_id="o", value=5)
        send(deployment, "conversion", "sign-up", end - 1.4, conversion_name="signup")
        send(deployment, "adjustment", "b", end, adjustment="restate", conversion_event_id="y", value=4)
        assert_exact(deployment)
        send(deployment, "click", "later", end + 20, user_id="bob")
        send(deployment, "conversion", "z", end + 20, value=3)
        assert_exact(deployment)


@pytest.mark.parametrize("policy", [PLATFORMS, EVERYTHING], ids=["platforms", "journeys"])
def test_a_repeat_of_what_is_held_for_an_adjustment_s_sake_is_one(policy: Policy) -> None:
    bounds = msgspec.structs.replace(policy.bounds, adjustment_window_ms=30 * UNIT_MS, order_window_ms=UNIT_MS)
    begin, end = 20, 20 + 30 + bounds.correction_horizon_ms / UNIT_MS
    with deployed(Deployment(Policy(bounds, policy.versions))) as deployment:
        send(deployment, "conversion", "x", 0, value=5)
        send(deployment, "click", "first kept", begin, user_id="bob")
        send(deployment, "conversion", "x", begin + 0.5, value=6)
        deployment.drain()
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, begin)
        assert_exact(deployment)


def send_later(deployment: Deployment, kind: str, event_id: str, at: float, by: float, **fields: Any) -> None:
    """One event whose record was written that much later (steps of the grid) than it happened."""
    send(deployment, kind, event_id, at, **fields)
    log = deployment.broker.logs["ads.events", 0]
    message, _ = log.entries.pop()
    assert message is not None
    deployment.broker.append("ads.events", 0, value=message.value(), timestamp=START_MS + round((at + by) * UNIT_MS))


def test_a_repeat_that_the_rebuild_has_let_go_already_makes_nobody_a_returning_customer() -> None:
    begin, end = 7.5, 7.5 + EVERYTHING.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(EVERYTHING)) as deployment:
        send(deployment, "conversion", "x", 5.6)
        send(deployment, "click", "first kept", begin, user_id="bob")
        send_later(deployment, "conversion", "x", 6.5, by=1.5)
        send(deployment, "conversion", "y", 14)  # 8.4 after x, 7.5 after its repeat, and customers are known for 8
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, begin)
        assert_exact(deployment)


def test_a_conversion_of_a_user_of_whom_the_log_tells_nothing_is_held_again() -> None:
    begin, end = 7.5, 7.5 + PLATFORMS.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(PLATFORMS)) as deployment:
        send_later(deployment, "conversion", "x", begin + 0.005, by=-0.01, value=5)  # by a clock that is ahead
        send(deployment, "click", "first kept", begin, user_id="bob")
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, begin)
        send(deployment, "conversion", "x", end - 1.5, value=6)
        assert_exact(deployment)


@pytest.mark.parametrize("policy", [PLATFORMS, EVERYTHING], ids=["platforms", "journeys"])
def test_a_touch_that_was_too_late_is_so_though_the_log_does_not_tell_it(policy: Policy) -> None:
    begin, end = 7.5, 7.5 + policy.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(policy)) as deployment:
        send(deployment, "click", "moves the time", 7.4, user_id="bob")
        send_later(deployment, "click", "k", 5.3, by=2.2)
        send(deployment, "click", "first kept", begin + 0.01, user_id="bob")
        send(deployment, "conversion", "x", begin + 0.5)
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, begin)
        send(deployment, "adjustment", "a", end, adjustment="restate", conversion_event_id="x", value=1)
        assert_exact(deployment)


def test_what_a_former_release_credited_otherwise_is_corrected_where_the_log_tells_all_of_it() -> None:
    begin, end = 7.5, 7.5 + PLATFORMS.conversion_retention_ms() / UNIT_MS
    topic = "conversions.attributed"
    with deployed(Deployment(PLATFORMS)) as deployment:
        send(deployment, "click", "gone", begin - 1, user_id="bob")
        send(deployment, "click", "first kept", begin, user_id="bob")
        for name, at in (("old", 8), ("reaches back", 15), ("new", 16)):  # a click is credited for 8
            send(deployment, "click", f"k of {name}", at - 0.2)
            send(deployment, "conversion", name, at)
        deployment.drain()
        for row in map(rows.decode_attributed, [each.value() for each in deployment.broker.committed(topic)]):
            key = rows.attributed_key("shop", "ann", "meta", "purchase", row.event_id)
            other = msgspec.structs.replace(row, touch_event_id="of a former rule", revision=row.revision + 1)
            deployment.broker.append(topic, 0, key=key, value=rows.encode(other))
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        before = len(deployment.broker.committed(topic))
        remove_old(deployment, begin)
        lose(deployment, "counter")
        deployment.drain()
        corrected = [rows.decode_attributed(each.value()) for each in deployment.broker.committed(topic)[before:]]
        assert [(row.event_id, row.touch_event_id, row.revision) for row in corrected] == [("new", "k of new", 3)]


@pytest.mark.parametrize("kind", ["retract", "restate"])
def test_an_adjustment_that_was_too_late_has_no_second_letter_and_no_effect(kind: str) -> None:
    begin, end = 7.5, 7.5 + PLATFORMS.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(PLATFORMS)) as deployment:
        send(deployment, "click", "k", 4)
        send(deployment, "conversion", "x", 4.5, conversion_name="signup")
        send(deployment, "click", "moves the time", 7.4, user_id="bob")
        send_later(deployment, "adjustment", "a", 5.3, by=2.2, adjustment=kind, conversion_event_id="x", value=1)
        send_later(deployment, "adjustment", "b", 5.3, by=2.2, adjustment=kind, order_id="o", value=1)
        send_later(deployment, "adjustment", "c", 5.3, 2.2, adjustment=kind, order_id="o", value=1, user_id="cat")
        send(deployment, "click", "first kept", begin + 0.01, user_id="bob")
        send(deployment, "conversion", "y", 8, conversion_name="signup")
        send_later(
            deployment, "click", "last", 17, by=end - 17, user_id="bob"
        )  # the events are behind: a and b are held
        deployment.drain()
        rebuild_in_short(deployment, begin)
        send_later(deployment, "conversion", "z", 18, by=end - 18, order_id="o")
        send_later(deployment, "conversion", "w", 18, by=end - 18, order_id="o", user_id="cat")
        assert_exact(deployment)


def test_what_a_repeat_of_a_forget_seems_to_have_forgotten_stands() -> None:
    policy = Policy(msgspec.structs.replace(BOUNDS_OF_12, dedup_window_ms=2 * UNIT_MS), POLICY.versions)
    begin, end = 7.5, 7.5 + policy.conversion_retention_ms() / UNIT_MS
    with deployed(Deployment(policy)) as deployment:
        send(deployment, "click", "gone", 7.3, user_id="bob")
        send_later(deployment, "forget", "f", 5.5, by=1.9)
        send(deployment, "click", "first kept", begin, user_id="bob")
        send(deployment, "click", "k", 7.8)
        send(deployment, "conversion", "x", 8)
        send(deployment, "forget", "f", 9)  # within the dedup window
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, begin)
