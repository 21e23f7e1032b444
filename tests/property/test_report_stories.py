"""Stories of conversions that the browser and the server report both, through the whole pipeline in memory: what is published
while the reports come, and that all of it is the oracle's answer.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from app.contract import journeys, rows
from app.policy.model import Policy
from tests.memory.deployment import Crash, Deployment, deployed
from tests.property.policies import MERGE_MS, MINUTE_MS, UNIT_MS
from tests.property.test_engine_stories import POLICY, assert_exact, change_policy, send, with_version
from tests.property.test_journey_stories import JOURNEYS
from tests.property.test_rebuilds import lose
from tests.property.test_short_logs import PLATFORMS, published, rebuild_in_short
from tests.property.test_short_logs import assert_exact as assert_exact_of_whole_log
from tests.upserts import latest

MINUTE = MINUTE_MS / UNIT_MS  # in steps of the grid


def merging(policy: Policy) -> Policy:
    """The policy with reports merged from its first version on."""
    versions = [msgspec.structs.replace(version, merge_reports_ms=MERGE_MS) for version in policy.versions]
    return Policy(policy.bounds, tuple(versions))


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """Two counters and two aggregators over one partition, at rest before anything came."""
    with deployed(Deployment(merging(POLICY), counters=2, aggregators=2)) as found:
        yield found


def now(deployment: Deployment, topic: str) -> list[bytes]:
    """The rows of a topic that hold now."""
    messages = deployment.broker.committed(topic)
    return list(latest((message.key() or b"", message.value()) for message in messages).values())


def attributed(deployment: Deployment) -> list[tuple[Any, ...]]:
    """What every row of `x` that was published said: revision, status, value, currency, order_id."""
    messages = deployment.broker.committed("conversions.attributed")
    found = [rows.decode_attributed(message.value()) for message in messages if message.value() is not None]
    return [(row.revision, row.status, row.value, row.currency, row.order_id) for row in found if row.event_id == "x"]


def counted(deployment: Deployment) -> dict[str, tuple[int, float]]:
    """Conversions and value by currency, as the counts have them now."""
    found: dict[str, tuple[int, float]] = {}
    for row in map(rows.decode_count, now(deployment, "conversions.counts")):
        if row.conversion_name and row.conversions:
            number, amount = found.get(row.currency, (0, 0.0))
            found[row.currency] = number + row.conversions, amount + row.value
    return found


def test_a_published_row_is_corrected_by_what_the_second_report_says(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3, currency="EUR", reported_by="server")
    deployment.drain()
    send(deployment, "conversion", "x", 1 + MINUTE, value=4, order_id="o", reported_by="browser")
    assert_exact(deployment)
    assert attributed(deployment) == [(1, "counted", 3, "EUR", None), (2, "counted", 4, None, "o")]
    assert counted(deployment) == {"": (1, 4)}


def test_reports_of_one_batch_leave_as_one_row(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3, reported_by="browser")
    send(deployment, "conversion", "x", 1, value=3, currency="EUR", order_id="o")
    assert_exact(deployment)
    assert attributed(deployment) == [(1, "counted", 3, "EUR", "o")]


def test_a_report_that_says_nothing_new_publishes_nothing(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3, currency="EUR", order_id="o", reported_by="browser")
    deployment.drain()
    before = published(deployment)
    send(deployment, "conversion", "x", 1 + MINUTE, value=4, currency="USD", order_id="p")
    send(deployment, "conversion", "x", 1, value=3, currency="EUR", order_id="o", reported_by="browser")
    assert_exact(deployment)
    assert published(deployment) == before


def test_an_adjustment_between_two_reports_waits_for_the_order_id_of_the_second(deployment: Deployment) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3, reported_by="browser")
    send(deployment, "adjustment", "a", 1.1, adjustment="restate", order_id="o", value=9)
    deployment.drain()
    assert attributed(deployment) == [(1, "counted", 3, None, None)]
    send(deployment, "conversion", "x", 1 + MINUTE, order_id="o")
    assert_exact(deployment)
    assert attributed(deployment)[1:] == [(2, "counted", 9, None, "o")]


def test_an_order_that_was_counted_becomes_a_duplicate_by_the_order_id_of_the_second_report(
    deployment: Deployment,
) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "first", 1, order_id="o", value=3)
    send(deployment, "conversion", "x", 2, value=3, reported_by="browser")
    deployment.drain()
    assert counted(deployment) == {"": (2, 6)}
    send(deployment, "conversion", "x", 2 + MINUTE, value=3, order_id="o")
    assert_exact(deployment)
    assert counted(deployment) == {"": (1, 3)}


def test_a_report_after_its_id_is_forgotten_by_the_filter_is_merged_while_the_conversion_is_held(
    deployment: Deployment,
) -> None:
    send(deployment, "conversion", "x", 0)
    send(deployment, "visit", "v", 7, page="/")  # so far that the id of x is remembered no more, but x is held
    deployment.drain()
    send(deployment, "conversion", "x", MINUTE, value=3)
    assert_exact(deployment)
    assert [value for _, _, value, _, _ in attributed(deployment)] == [0, 3]


def test_a_version_of_the_policy_turns_it_on_and_leaves_what_was_before(deployment: Deployment) -> None:
    deployment.policy = POLICY
    send(deployment, "conversion", "old", 1 - MINUTE / 2)
    send(deployment, "conversion", "old", 1, value=5)
    deployment.drain()
    later = with_version(POLICY, 1, **POLICY.versions[0].platforms)
    change_policy(deployment, Policy(later.bounds, (later.versions[0], *merging(later).versions[1:])))
    send(deployment, "conversion", "old", 1, value=6)
    send(deployment, "conversion", "x", 1)
    send(deployment, "conversion", "x", 1 - MINUTE / 2, value=7)
    assert_exact(deployment)
    assert attributed(deployment)[-1][2] == 7
    left = map(rows.decode_attributed, now(deployment, "conversions.attributed"))
    assert [row.value for row in left if row.event_id == "old"] == [0]


@pytest.mark.parametrize("role", ["counter", "aggregator"])
def test_what_was_merged_is_rebuilt_from_the_log_and_published_by_nobody_twice(
    deployment: Deployment, role: str
) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3, currency="EUR")
    deployment.drain()
    send(deployment, "conversion", "x", 1 + MINUTE, value=4, currency="EUR", order_id="o", reported_by="browser")
    deployment.drain()
    before = published(deployment)
    lose(deployment, role)
    deployment.drain()
    assert published(deployment) == before
    send(deployment, "adjustment", "a", 2, adjustment="restate", order_id="o", value=9)
    assert_exact(deployment)
    assert counted(deployment) == {"EUR": (1, 9)}


@pytest.mark.parametrize("step", ["produced", "offsets_sent", "committed", "state_written"])
def test_a_worker_killed_while_it_merges_loses_and_doubles_nothing(deployment: Deployment, step: str) -> None:
    send(deployment, "click", "k", 0)
    send(deployment, "conversion", "x", 1, value=3)
    deployment.drain()
    send(deployment, "conversion", "x", 1 + MINUTE, value=4, order_id="o", reported_by="browser")
    passed = []

    def crash(name: str) -> None:
        if name == step and not passed:
            passed.append(name)
            raise Crash(name)

    for worker in ("counter-0", "counter-1"):
        deployment.turn(worker, at_step=crash)
    assert_exact(deployment)
    assert passed
    assert attributed(deployment) == [(1, "counted", 3, None, None), (2, "counted", 4, None, "o")]


@pytest.mark.parametrize("in_one_batch", [False, True])
def test_what_a_forgotten_report_said_goes_and_none_of_before_is_heard_again(
    deployment: Deployment, in_one_batch: bool
) -> None:
    browsers = {"value": 4, "order_id": "o", "reported_by": "browser"}
    send(deployment, "conversion", "x", 2, value=3)
    send(deployment, "conversion", "x", 2 - MINUTE, **browsers)
    if not in_one_batch:
        deployment.drain()
    send(deployment, "forget", "f", 2 - MINUTE / 2)
    send(deployment, "conversion", "x", 2 - MINUTE, **browsers)
    send(deployment, "conversion", "x", 2 + MINUTE, currency="EUR")
    assert_exact(deployment)
    assert attributed(deployment)[-1][2:] == (3, "EUR", None)


def test_journeys_and_models_have_what_the_reports_say_together() -> None:
    bounds = msgspec.structs.replace(POLICY.bounds, journeys=msgspec.structs.replace(JOURNEYS, abandoned_actions=()))
    with deployed(Deployment(merging(Policy(bounds, POLICY.versions)))) as deployment:
        send(deployment, "click", "k", 0)
        send(deployment, "conversion", "x", 1, value=3, platform="meta")
        deployment.drain()
        send(deployment, "conversion", "x", 1 + MINUTE, value=4, currency="EUR", reported_by="browser")
        assert_exact(deployment)
        orders = map(journeys.decode_journey, now(deployment, "conversions.journeys"))
        assert [(row.value, row.currency) for row in orders] == [(4, "EUR")]
        models = map(journeys.decode_model, now(deployment, "conversions.models"))
        assert {(row.value, row.currency) for row in models} == {(4, "EUR")}


@pytest.mark.parametrize("ahead", [-MINUTE / 2, MINUTE], ids=["of before what is held", "of what is held"])
def test_a_log_cut_between_two_reports_leaves_what_they_said_together(ahead: float) -> None:
    """The log holds only the second report then, which says something else."""
    policy = merging(PLATFORMS)
    kept = 7.5
    at, end = kept + ahead, kept + policy.conversion_retention_ms() / UNIT_MS
    first = {"value": 3, "currency": "EUR", "order_id": "o", "reported_by": "browser"}
    with deployed(Deployment(policy)) as deployment:
        send(deployment, "click", "k", 1)
        send(deployment, "conversion", "x", at, written=kept - MINUTE, **first)
        send(deployment, "click", "first kept", kept, user_id="bob")
        send(deployment, "conversion", "x", at, value=5, order_id="p")
        send(deployment, "click", "l", at + 5)
        send(deployment, "conversion", "again", at + 10, value=3, order_id="o")  # just within the order's window
        deployment.drain()
        assert attributed(deployment) == [(1, "counted", 3, "EUR", "o")]
        send(deployment, "click", "last", end, user_id="bob")
        deployment.drain()
        rebuild_in_short(deployment, kept)
        send(deployment, "conversion", "other", end - 1.5, value=3, order_id="p")
        assert_exact_of_whole_log(deployment)
        left = map(rows.decode_attributed, now(deployment, "conversions.attributed"))
        assert {row.event_id: row.duplicate_of for row in left} == {"x": None, "again": "x", "other": None}
