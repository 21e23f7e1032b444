"""Stories of journeys in which the engine once gave another answer than the oracle, or in which the generated ones seldom end
up.
"""

from collections.abc import Iterator

import msgspec
import pytest

from app.policy.model import Action, Bounds, Journeys, Platform, Policy, Version
from tests.memory.deployment import Deployment, deployed
from tests.property.policies import FOREVER_MS, MINUTE_MS, UNIT_MS
from tests.property.test_engine_stories import assert_exact, send

JOURNEYS = Journeys(
    window_ms=8 * UNIT_MS,
    orders=("purchase",),
    customer_window_ms=200 * UNIT_MS,
    abandoned_actions=("cart",),
    abandon_after_ms=MINUTE_MS,
)
POLICY = Policy(
    Bounds(
        correction_horizon_ms=2 * UNIT_MS,
        max_event_age_ms=FOREVER_MS,
        dedup_window_ms=UNIT_MS,
        order_window_ms=UNIT_MS,
        adjustment_window_ms=10 * UNIT_MS,
        journeys=JOURNEYS,
    ),
    (
        Version(
            1,
            0,
            {"meta": Platform("click", {"click": UNIT_MS}, {}), "tiktok": Platform("view", {"view": UNIT_MS}, {})},
            {
                "purchase": Action("macro", "hard", "revenue", "every", None),
                "cart": Action("micro", "soft", "revenue", "every", None),
            },
        ),
    ),
)
RETENTION = POLICY.conversion_retention_ms() // UNIT_MS


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """Two counters and two aggregators over one partition, at rest before anything came."""
    with deployed(Deployment(POLICY, counters=2, aggregators=2)) as found:
        yield found


@pytest.mark.parametrize("in_one_batch", [False, True])
def test_a_repeat_of_another_time_leaves_the_journey_of_the_first(deployment: Deployment, in_one_batch: bool) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "visit", "v", 0, page="/")
    send(deployment, "conversion", "x", 0.5)
    if not in_one_batch:
        deployment.drain()
    send(deployment, "visit", "w", 2, page="/")  # so far that the id of x is remembered no more, but x is held
    send(deployment, "view", "t", 1, platform="tiktok")
    send(deployment, "conversion", "x", 1.5, value=9)
    assert_exact(deployment)


def test_a_cart_is_held_as_long_as_the_order_that_completes_it_can_change(deployment: Deployment) -> None:
    send(deployment, "conversion", "c", 0, conversion_name="cart")
    send(deployment, "conversion", "x", 8, order_id="o", value=5)
    deployment.drain()
    send(deployment, "conversion", "later", 13, conversion_name="cart")  # c is older than what is kept by section 6
    deployment.drain()
    send(deployment, "adjustment", "r", 18, adjustment="restate", value=3, order_id="o")
    assert_exact(deployment)


def test_a_rebuild_corrects_no_order_whose_cart_it_forgot(deployment: Deployment) -> None:
    send(deployment, "conversion", "c", 0, conversion_name="cart")
    send(deployment, "conversion", "x", 8, value=5)
    deployment.drain()
    send(deployment, "conversion", "later", 13, conversion_name="cart")
    deployment.drain()
    deployment.empty_redis("counter")
    send(deployment, "visit", "v", 13, page="/")
    assert_exact(deployment)


def test_a_cart_before_a_retracted_order_is_completed_by_the_next_one(deployment: Deployment) -> None:
    send(deployment, "conversion", "c", 0, conversion_name="cart")
    send(deployment, "conversion", "x", 7.5, order_id="o")
    send(deployment, "conversion", "y", 8, order_id="p")
    deployment.drain()
    send(deployment, "conversion", "later", 14, conversion_name="cart")
    deployment.drain()
    send(deployment, "adjustment", "r", 17, adjustment="retract", order_id="o")
    assert_exact(deployment)


def with_window(policy: Policy, **windows_ms: int) -> Policy:
    bounds = msgspec.structs.replace(policy.bounds, **windows_ms)
    return Policy(bounds, policy.versions)


@pytest.mark.parametrize("loses_state", [False, True])
def test_orders_forgotten_make_no_older_order_a_new_customers(loses_state: bool) -> None:
    policy = with_window(POLICY, order_window_ms=10 * UNIT_MS, adjustment_window_ms=4 * UNIT_MS)
    with deployed(Deployment(policy)) as deployment:
        send(deployment, "conversion", "z", 0)
        send(deployment, "conversion", "a", 4, order_id="o")
        send(deployment, "conversion", "b", 6)
        send(deployment, "conversion", "c", 13, order_id="o")  # another report of a, which keeps it
        deployment.drain()
        send(deployment, "conversion", "d", 18.5, conversion_name="cart")
        deployment.drain()
        if loses_state:
            deployment.empty_redis("counter")
        send(deployment, "conversion", "e", 18.6)
        assert_exact(deployment)


def test_a_cart_of_the_same_instant_as_a_forgotten_order_stands_before_it_by_its_id(deployment: Deployment) -> None:
    send(deployment, "conversion", "b", 0, conversion_name="cart")
    send(deployment, "conversion", "o", 0)
    send(deployment, "conversion", "x", 4)
    deployment.drain()
    send(deployment, "conversion", "z", RETENTION + 2, conversion_name="cart")  # o is forgotten, b stays for x
    deployment.drain()
    deployment.empty_redis("counter")
    send(deployment, "visit", "v", RETENTION + 2, page="/")
    assert_exact(deployment)


@pytest.mark.parametrize("loses_state", [False, True])
def test_a_customer_is_one_long_after_the_order_was_forgotten(deployment: Deployment, loses_state: bool) -> None:
    for number, at in enumerate((0, 100, 300, 500.1)):
        send(deployment, "conversion", f"x{number}", at)
        deployment.drain()
        if loses_state:
            deployment.empty_redis("counter")
            send(deployment, "visit", f"v{number}", at, page="/")
    assert_exact(deployment)
