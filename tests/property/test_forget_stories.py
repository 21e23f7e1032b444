"""Stories of persons who are forgotten (docs/counting.md, section 12): the engine on backends in memory, and the oracle."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from app.attribution.converters import BUCKETS
from app.contract import rows
from app.contract.journeys import decode_journey
from app.generate.owner import owner_partition
from app.policy.model import Journeys
from app.privacy.rows import row_topics
from tests.memory.deployment import Deployment, deployed
from tests.property.forgets import delete_older
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import POLICY, assert_exact, send
from tests.property.test_rebuilds import lose

FOLLOWING = msgspec.structs.replace(
    POLICY,
    bounds=msgspec.structs.replace(
        POLICY.bounds, journeys=Journeys(window_ms=8 * UNIT_MS, orders=("purchase",), customer_window_ms=200 * UNIT_MS)
    ),
)
RETENTION = POLICY.conversion_retention_ms() // UNIT_MS


@pytest.fixture(params=[POLICY, FOLLOWING], ids=["platforms", "journeys"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Two counters and two aggregators over one partition, at rest before anything came."""
    with deployed(Deployment(request.param, counters=2, aggregators=2)) as found:
        yield found


def forget(deployment: Deployment, event_id: str, at: float, **fields: Any) -> None:
    """A forget of the user ann, up to so many steps of the grid."""
    send(deployment, "forget", event_id, at, **fields)


def published(deployment: Deployment) -> dict[str, list[tuple[bytes | None, bytes | None]]]:
    """Everything on the output topics."""
    topics = (*row_topics(deployment.settings, deployment.policy), deployment.settings.counts_topic)
    return {topic: [(each.key(), each.value()) for each in deployment.broker.committed(topic)] for topic in topics}


def standing(deployment: Deployment) -> dict[str, int]:
    """How many rows of persons stand, by topic."""
    topics = row_topics(deployment.settings, deployment.policy)
    return {topic: sum(value is not None for value in dict(published(deployment)[topic]).values()) for topic in topics}


def conversions(deployment: Deployment) -> int:
    """The conversions in the counts of the platforms."""
    latest = dict(published(deployment)[deployment.settings.counts_topic])
    found = [rows.decode_count(value) for value in latest.values() if value is not None]
    return sum(row.conversions for row in found if row.scope == "platform")


def users_held(deployment: Deployment) -> int:
    """How many users the counters' state in Redis names."""
    return sum(len(value) for key, value in deployment.memory.values.items() if b":conv:" in key)


def look_through(deployment: Deployment, at: float) -> None:
    """The stream time moves on, and every bucket of users is looked through."""
    for _ in range(2 * BUCKETS):  # what was begun on the day before is ended first
        send(deployment, "visit", "v", at, page="/", user_id="bob")
        deployment.turn("counter-0")
    deployment.drain()


def assert_rebuilt_without_a_difference(deployment: Deployment) -> None:
    """All is exact; and once more when the counters have lost their state, without any record more."""
    assert_exact(deployment)
    before = published(deployment)
    lose(deployment, "counter")
    assert_exact(deployment)
    assert published(deployment) == before


@pytest.mark.parametrize("cut", [True, False])
def test_rows_and_state_go_and_counts_stay(deployment: Deployment, cut: bool) -> None:
    send(deployment, "visit", "v", 0, page="/")
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "c1", 1, order_id="o", value=3)
    send(deployment, "conversion", "c2", 1.5, conversion_name="signup")
    send(deployment, "adjustment", "a", 2, adjustment="restate", value=4, order_id="o")
    if cut:
        deployment.drain()
        assert all(standing(deployment).values())
    forget(deployment, "f", 3)
    assert_rebuilt_without_a_difference(deployment)
    assert conversions(deployment) == 2
    assert not any(standing(deployment).values())
    if not cut:  # what is deleted at once nobody need read
        log = published(deployment)[deployment.settings.attributed_topic]
        assert all(value is None for _, value in log)
    assert users_held(deployment) == 1  # the time of the forget


@pytest.mark.parametrize("comes_more", [False, True])
@pytest.mark.parametrize("grant", [1, 2, 3, None])
def test_what_is_later_is_credited_anew_from_what_is_stored(
    deployment: Deployment, grant: int | None, comes_more: bool
) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "view", "k2", 2.5, campaign_id="later")
    send(deployment, "visit", "v1", 0.5, page="/early")
    send(deployment, "visit", "v2", 2.6, page="/late")
    send(deployment, "conversion", "c", 3, value=5)
    forget(deployment, "f", 2)
    if comes_more:
        send(deployment, "click", "k3", 1)  # of before, and late
        send(deployment, "view", "k4", 2.7, campaign_id="last")
    for _ in range(8):
        deployment.turn("counter-0", grant)
    assert_rebuilt_without_a_difference(deployment)
    attributed = dict(published(deployment)[deployment.settings.attributed_topic])
    (value,) = [value for value in attributed.values() if value is not None]
    assert rows.decode_attributed(value).campaign_id == ("last" if comes_more else "later")


@pytest.mark.parametrize("grant", [1, 2, None])
def test_another_report_of_a_forgotten_order_counts_whatever_the_batches(
    deployment: Deployment, grant: int | None
) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "conversion", "c1", 1, order_id="o", value=5)
    send(deployment, "click", "k2", 3)
    send(deployment, "conversion", "c2", 4, order_id="o", value=5)
    send(deployment, "adjustment", "a", 1.5, adjustment="restate", value=7, order_id="o")
    forget(deployment, "f", 2)
    send(deployment, "conversion", "c3", 5, order_id="o", value=5)
    for _ in range(8):
        deployment.turn("counter-0", grant)
    assert_rebuilt_without_a_difference(deployment)
    assert conversions(deployment) == 2


@pytest.mark.parametrize("grant", [1, 2, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_repeat_of_an_id_is_one_before_the_forget_and_none_behind_it(
    deployment: Deployment, place: int, grant: int | None
) -> None:
    send(deployment, "conversion", "c", 1, value=5)
    send(deployment, "visit", "v", 8, page="/")  # so far that the id of c is remembered no more, but c is held
    story = [lambda: send(deployment, "conversion", "c", 7, value=6), lambda: forget(deployment, "g", 3)]
    story.insert(place, lambda: forget(deployment, "f", 2))
    for each in story:
        each()
    for _ in range(8):
        deployment.turn("counter-0", grant)
    assert_rebuilt_without_a_difference(deployment)
    assert standing(deployment)[deployment.settings.attributed_topic] == (place == 0)


@pytest.mark.parametrize("is_repeated", [False, True])
@pytest.mark.parametrize("grant", [1, 2, None])
def test_what_comes_after_it_of_before_is_ignored(deployment: Deployment, grant: int | None, is_repeated: bool) -> None:
    forget(deployment, "f", 5)  # nobody knows ann yet
    send(deployment, "click", "k1", 3)
    send(deployment, "conversion", "c1", 4, order_id="o")
    send(deployment, "adjustment", "a", 4.5, adjustment="retract", order_id="o")
    send(deployment, "conversion", "c2", 6, order_id="o")
    if is_repeated:
        forget(deployment, "g", 2)  # an earlier time changes nothing
    for _ in range(8):
        deployment.turn("counter-0", grant)
    assert_rebuilt_without_a_difference(deployment)
    assert conversions(deployment) == 0
    assert standing(deployment)[deployment.settings.attributed_topic] == 1


def test_a_row_of_one_key_of_before_and_of_later_is_deleted_before_it_is_written(deployment: Deployment) -> None:
    send(deployment, "click", "k1", 0)
    send(deployment, "conversion", "c", 1, value=5)
    send(deployment, "click", "k2", 2.5)
    send(deployment, "conversion", "c", 3, value=6, platform="meta")  # one conversion with c, until that is forgotten
    deployment.drain()
    forget(deployment, "f", 2)
    assert_rebuilt_without_a_difference(deployment)
    assert conversions(deployment) == 2
    assert standing(deployment)[deployment.settings.attributed_topic] == 1


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_an_order_that_is_held_no_more_makes_no_customer_return_after_a_forget(is_forgotten: bool) -> None:
    with deployed(Deployment(FOLLOWING, counters=2, aggregators=2)) as deployment:
        send(deployment, "conversion", "c1", 1)
        deployment.drain()
        look_through(deployment, 3 * RETENTION)
        if is_forgotten:
            forget(deployment, "f", 3 * RETENTION)
        send(deployment, "conversion", "c2", 3 * RETENTION + 1)
        deployment.drain()
        delete_older(deployment)
        assert_exact(deployment)
        latest = dict(published(deployment)[deployment.settings.journeys_topic]).values()
        customers = {decode_journey(value).customer for value in latest if value is not None}
        assert customers == ({"new"} if is_forgotten else {"new", "returning"})


def test_rows_older_than_the_state_are_deleted_and_make_no_customer_return() -> None:
    with deployed(Deployment(FOLLOWING, counters=2, aggregators=2)) as deployment:
        send(deployment, "click", "k", 0)
        send(deployment, "conversion", "c1", 1)
        deployment.drain()
        look_through(deployment, 3 * RETENTION)
        forget(deployment, "f", 3 * RETENTION)
        deployment.drain()
        assert standing(deployment)[deployment.settings.attributed_topic] == 1
        lose(deployment, "counter")  # before the command has come to the rows
        deployment.drain()
        assert delete_older(deployment) == 2 + len(deployment.policy.bounds.journeys.models)  # type: ignore[union-attr]
        assert not any(standing(deployment).values())
        send(deployment, "conversion", "c2", 3 * RETENTION + 1)
        assert_rebuilt_without_a_difference(deployment)
        assert delete_older(deployment) == 0


def test_the_time_of_the_forget_goes_when_nothing_of_before_can_matter(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    forget(deployment, "f", 1)
    deployment.drain()
    assert users_held(deployment) == 1
    look_through(deployment, 3 * RETENTION)
    assert users_held(deployment) == 0
    send(deployment, "conversion", "c", 3 * RETENTION)
    assert_exact(deployment)


def test_a_forget_of_now_makes_no_event_of_last_year_too_late(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    forget(deployment, "f", 1_000)
    send(deployment, "click", "l", 1)
    assert_rebuilt_without_a_difference(deployment)
    assert deployment.broker.committed(deployment.settings.dlq_topic) == []


def test_a_forget_on_a_foreign_partition_reaches_its_owner() -> None:
    owner = owner_partition(b"ann", 2, "murmur2")
    with deployed(Deployment(POLICY, partitions=2)) as deployment:

        def arrive(partition: int, **fields: Any) -> None:
            event = {"event_time": START_MS + UNIT_MS, "advertiser_id": "shop", "user_id": "ann"} | fields
            value = json.dumps(event).encode()
            deployment.broker.append("ads.events", partition, value=value, timestamp=event["event_time"])

        arrive(owner, event_id="c", event_type="conversion", conversion_name="purchase")
        arrive(1 - owner, event_id="f", event_type="forget")
        assert_exact(deployment)
        assert not any(standing(deployment).values())


def test_only_the_user_of_the_advertiser_is_forgotten(deployment: Deployment) -> None:
    for advertiser in ("shop", "bank"):
        for user in ("ann", "bob"):
            send(deployment, "conversion", f"c-{advertiser}-{user}", 1, advertiser_id=advertiser, user_id=user)
    forget(deployment, "f", 2)
    assert_rebuilt_without_a_difference(deployment)
    assert standing(deployment)[deployment.settings.attributed_topic] == 3
