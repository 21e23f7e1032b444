"""Stories of conversions that name only a click: when they find its user, when not, and what goes wrong in between."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from app.contract import reasons, rows
from app.contract.click_ids import click_key, decode, encode
from app.contract.events import Rejection, judge_event
from app.engine.failpoint import STEPS
from app.engine.state import StateRefused
from app.policy.model import Bounds, ClickIds, Platform, Policy
from app.verify.partition import owner_of
from tests.formats.written import structured
from tests.memory.deployment import Crash, Deployment, deployed
from tests.memory.redis import Lost
from tests.property.checks import differences, oracles_answer
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import POLICY as PLAIN

BOUNDS: Bounds = msgspec.structs.replace(PLAIN.bounds, click_ids=ClickIds(7 * UNIT_MS, 20 * UNIT_MS))
PLATFORMS = PLAIN.versions[0].platforms | {"tiktok": Platform("click", {"click": 8 * UNIT_MS}, {})}
POLICY = Policy(BOUNDS, (msgspec.structs.replace(PLAIN.versions[0], platforms=PLATFORMS),))
ROLES = {"counter": "counter-0", "matcher": "matcher-0", "aggregator": "aggregator-0"}


@pytest.fixture(params=[1, 3], ids=["one partition", "three"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with deployed(Deployment(POLICY, request.param, counters=2, aggregators=2, matchers=2)) as found:
        yield found


def send(deployment: Deployment, kind: str, event_id: str, at: float, user: str | None = None, **fields: Any) -> None:
    """One event at so many steps of the grid, on any partition; without a user it names the click k1, if no other."""
    event = {"event_id": event_id, "event_type": kind, "event_time": START_MS + round(at * UNIT_MS)}
    event |= {"advertiser_id": "shop"} | ({"click_id": "k1"} if user is None else {"user_id": user}) | fields
    if kind == "click":
        event = {"platform": "meta", "campaign_id": "c1"} | event
    if kind == "conversion":
        event = {"conversion_name": "purchase"} | event
    partition = sum(event_id.encode()) % deployment.partitions
    deployment.broker.append("ads.events", partition, value=json.dumps(event).encode(), timestamp=event["event_time"])


def assert_exact(deployment: Deployment) -> None:
    """Lets everything be counted, and compares it with the oracle's answer."""
    deployment.drain()
    found = differences(deployment)
    assert not found, "\n".join(found)


def attributed(deployment: Deployment) -> dict[str, rows.AttributedRow]:
    """The published conversions, by event id."""
    latest = {message.key(): message.value() for message in deployment.broker.committed("conversions.attributed")}
    found = [rows.decode_attributed(value) for value in latest.values() if value is not None]
    return {row.event_id: row for row in found}


def letters(deployment: Deployment) -> list[str]:
    """The reasons of the dead letters."""
    return [
        rows.decode_dead_letter(message.value() or b"").reason
        for message in deployment.broker.committed("ads.events.dlq")
    ]


def test_a_conversion_finds_the_user_of_its_click_and_is_credited(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c1", 1, value=3.5, order_id="o1")
    assert_exact(deployment)
    row = attributed(deployment)["c1"]
    assert (row.user_id, row.status, row.touch_event_id, row.value) == ("ann", "counted", "e1", 3.5)
    assert row.event_time == START_MS + UNIT_MS
    assert oracles_answer(deployment).matched == 1


def test_it_waits_for_a_click_that_comes_later(deployment: Deployment) -> None:
    send(deployment, "conversion", "c1", 1)
    assert_exact(deployment)
    assert oracles_answer(deployment).waiting == 1
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    assert_exact(deployment)
    assert attributed(deployment)["c1"].touch_event_id == "e1"


@pytest.mark.parametrize(("late_ms", "is_lost"), [(-1, False), (0, True)])
def test_it_waits_until_park_for_after_its_time_and_not_a_millisecond_longer(
    deployment: Deployment, late_ms: int, is_lost: bool
) -> None:
    send(deployment, "conversion", "c1", 1)
    deployment.drain()
    send(deployment, "click", "e1", 8 + late_ms / UNIT_MS, "ann", click_id="k1")
    assert_exact(deployment)
    assert letters(deployment) == [reasons.CLICK_NOT_FOUND] * is_lost
    assert ("c1" in attributed(deployment)) is not is_lost


def test_one_that_waited_long_is_counted_in_the_window_of_its_own_time(deployment: Deployment) -> None:
    """Its user's partition has gone on meanwhile, as far as the click's."""
    send(deployment, "click", "e0", 0, "ann", click_id="another")
    send(deployment, "conversion", "c1", 1)
    assert_exact(deployment)
    for partition in range(deployment.partitions):
        send(deployment, "visit", chr(97 + partition), 7.99, "ann", page="/")
    send(deployment, "click", "e1", 7.99, "ann", click_id="k1")
    assert_exact(deployment)
    row = attributed(deployment)["c1"]
    assert (row.status, row.touch_event_id) == ("counted", "e0")
    latest = {message.key(): message.value() for message in deployment.broker.committed("conversions.counts")}
    (window,) = [row for row in map(rows.decode_count, latest.values()) if row.conversions]
    assert window.window_start <= START_MS + UNIT_MS < window.window_end
    assert letters(deployment) == []


def test_a_click_id_is_its_first_users_and_renewed_by_that_one_only(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    assert_exact(deployment)
    send(deployment, "click", "e2", 1, "bob", click_id="k1")
    send(deployment, "click", "e3", 15, "ann", click_id="k1")
    assert_exact(deployment)
    send(deployment, "click", "e4", 30, "zoe", click_id="k1")
    send(deployment, "conversion", "c1", 30.1)
    assert_exact(deployment)
    assert attributed(deployment)["c1"].user_id == "ann", "known since 15, for 20"
    send(deployment, "click", "e5", 36, "zoe", click_id="k1")
    send(deployment, "conversion", "c2", 36.1)
    assert_exact(deployment)
    assert attributed(deployment)["c2"].user_id == "zoe"


def test_a_named_platform_must_be_the_clicks(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1", platform="tiktok")
    assert_exact(deployment)
    send(deployment, "click", "e2", 0, "bob", click_id="k1")
    assert_exact(deployment)
    send(deployment, "conversion", "c1", 1, platform="meta")
    send(deployment, "conversion", "c2", 1, platform="tiktok")
    send(deployment, "conversion", "c3", 1)
    assert_exact(deployment)
    assert {name: row.user_id for name, row in attributed(deployment).items()} == {
        "c1": "bob",
        "c2": "ann",
        "c3": "bob",
    }


def test_repeats_and_other_reports_are_duplicates(deployment: Deployment) -> None:
    send(deployment, "conversion", "c1", 1, order_id="o1")
    send(deployment, "conversion", "c1", 1, order_id="o1")
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c2", 1.01, "ann", order_id="o1")
    assert_exact(deployment)
    send(deployment, "conversion", "c1", 1, order_id="o1")
    assert_exact(deployment)
    assert {name: row.status for name, row in attributed(deployment).items()} == {"c1": "counted", "c2": "duplicate"}
    assert len(oracles_answer(deployment).duplicates) == 2


def test_adjustments_find_their_order_by_the_click(deployment: Deployment) -> None:
    send(deployment, "adjustment", "a1", 2, adjustment="restate", value=7, order_id="o1")
    send(deployment, "adjustment", "a2", 2, adjustment="retract", order_id="")
    send(deployment, "adjustment", "a3", 2, adjustment="retract", conversion_event_id="c2")
    send(deployment, "conversion", "c1", 1, order_id="o1", value=1)
    send(deployment, "conversion", "c2", 1, order_id="o2", value=1)
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    assert_exact(deployment)
    found = attributed(deployment)
    assert (found["c1"].value, found["c2"].status) == (7, "retracted")
    assert letters(deployment) == [reasons.MISSING_FIELD], "which order of the click a2 means is unknown"


def test_a_conversion_without_user_and_click_is_refused_as_ever(deployment: Deployment) -> None:
    send(deployment, "conversion", "c1", 1, click_id="")
    send(deployment, "conversion", "c2", 1, click_id=None)
    send(deployment, "conversion", "c3", 1, user_id=None, click_id=None)
    send(deployment, "visit", "v1", 1, page="/")
    send(deployment, "click", "e1", 1)
    assert_exact(deployment)
    assert sorted(letters(deployment)) == [reasons.INVALID_FIELD] + [reasons.MISSING_FIELD] * 4


def test_nothing_of_it_runs_where_the_policy_does_not_ask_for_it() -> None:
    with deployed(Deployment(PLAIN)) as deployment:
        send(deployment, "click", "e1", 0, "ann", click_id="k1")
        send(deployment, "conversion", "c1", 1)
        assert_exact(deployment)
        assert letters(deployment) == [reasons.MISSING_FIELD]
        assert deployment.broker.committed("onecount.clicks") == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("role", ["counter", "matcher"])
def test_a_kill_at_any_step_matches_exactly_once(deployment: Deployment, role: str, step: str) -> None:
    """Each batch is killed once, wherever it is, and a rebuild once; one waits, one is matched at once, one is lost."""
    killed = []

    def kill(passed: str) -> None:
        if passed == step and deployment.passings.count(step) == 1 and not (step == "rebuilt" and killed):
            killed.append(step)
            raise Crash(step)

    def move() -> None:
        for _ in range(3):
            for name in ROLES.values():
                at_step = kill if name == ROLES[role] else None
                deployment.turn(name, at_step=at_step)
                deployment.turn(name, at_step=at_step if step == "rebuilt" else None)

    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c1", 1)
    send(deployment, "conversion", "c2", 1, click_id="k2")
    send(deployment, "conversion", "c3", 0, click_id="never")
    move()
    if step == "rebuilt":
        deployment.empty_redis(role)
    send(deployment, "click", "e2", 0.5, "bob", click_id="k2")
    send(deployment, "click", "e3", 7.5, "bob", click_id="k3")
    move()
    assert_exact(deployment)
    assert killed
    assert set(attributed(deployment)) == {"c1", "c2"}
    copies = deployment.broker.committed("onecount.rekeyed")
    named = [json.loads(message.value())["event_id"] for message in copies]
    assert len(named) == len(set(named)), "each event is sent on once"


@pytest.mark.parametrize("lost", [*Lost, None], ids=str)
def test_a_write_whose_answer_is_lost_and_an_emptied_redis_are_made_good(
    deployment: Deployment, lost: Lost | None
) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c2", 1, click_id="k2")
    deployment.drain()

    def lose(session: Any) -> None:
        if lost is not None:
            session.store.lost.append(lost)

    send(deployment, "conversion", "c1", 1)
    send(deployment, "conversion", "c3", 1, click_id="k3")
    deployment.turn("counter-0")
    deployment.turn("counter-1")
    deployment.turn("matcher-0", prepare=lose)
    if lost is None:
        deployment.empty_redis("matcher")
    send(deployment, "click", "e2", 0, "bob", click_id="k2")
    send(deployment, "click", "e3", 0, "bob", click_id="k3")
    assert_exact(deployment)
    assert {name: row.user_id for name, row in attributed(deployment).items()} == {
        "c1": "ann",
        "c2": "bob",
        "c3": "bob",
    }
    assert bool(deployment.rebuilt["matcher"]) == (lost is None)


def test_a_former_owner_that_wakes_up_sends_nothing(deployment: Deployment) -> None:
    send(deployment, "conversion", "c1", 1)
    deployment.drain()
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    deployment.turn("counter-0")
    deployment.turn("counter-1")

    def overtake(step: str) -> None:
        if step == "transaction_begun":
            for name in ("matcher-0", "matcher-1"):
                deployment.forget(deployment.workers[name].session)
                deployment.workers[name].session = None
            for _ in range(3):
                deployment.turn("matcher-1")

    for name in ("matcher-0", "matcher-1"):
        deployment.turn(name, at_step=overtake)
    assert_exact(deployment)


def test_damaged_state_is_rebuilt(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c2", 1, click_id="k2")
    deployment.drain()
    gone = [key for key in deployment.memory.values if b":owners:" in key or b":waiting:" in key]
    for key in gone:
        del deployment.memory.values[key]
    for name in ("matcher-0", "matcher-1"):
        deployment.forget(deployment.workers[name].session)
        deployment.workers[name].session = None
    send(deployment, "conversion", "c1", 1)
    send(deployment, "click", "e2", 0, "bob", click_id="k2")
    assert_exact(deployment)
    assert gone
    assert {name: row.user_id for name, row in attributed(deployment).items()} == {"c1": "ann", "c2": "bob"}


def test_a_counter_that_lost_its_state_tells_no_click_twice(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "conversion", "c1", 1)
    deployment.drain()
    deployment.empty_redis("counter")
    send(deployment, "conversion", "c2", 1, order_id="o2")
    assert_exact(deployment)
    assert deployment.rebuilt["counter"]
    kinds = [type(decode(message.value())).__name__ for message in deployment.broker.committed("onecount.clicks")]
    assert sorted(kinds) == ["ClickRow", "UserlessRow", "UserlessRow"]


def test_a_forgotten_persons_conversions_stay_forgotten(deployment: Deployment) -> None:
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    send(deployment, "forget", "f1", 2, "ann")
    assert_exact(deployment)
    send(deployment, "conversion", "c1", 1)
    send(deployment, "conversion", "c2", 3)
    assert_exact(deployment)
    assert set(attributed(deployment)) == {"c2"}


def test_rows_of_another_release_are_refused(deployment: Deployment) -> None:
    deployment.broker.append("onecount.clicks", 0, key=b"[]", value=encode(["video", "u1"]))
    with pytest.raises(StateRefused, match=r"onecount\.clicks/0 at offset 0 is unreadable"):
        deployment.drain()


def test_a_key_as_large_as_a_record_may_be_makes_no_row_too_large(deployment: Deployment) -> None:
    lead = {"event_id": "c1", "event_type": "conversion", "event_time": START_MS, "advertiser_id": "shop"}
    value = json.dumps(lead | {"click_id": "k1", "conversion_name": "purchase", "more": '"' * 100_000}).encode()
    deployment.broker.append("ads.events", 0, key=b"x" * 900_000, value=value, timestamp=START_MS)
    deployment.drain()
    (row,) = deployment.broker.committed("onecount.clicks")
    assert len(row.value() or b"") < 2.2 * len(value)
    send(deployment, "click", "e1", 0, "ann", click_id="k1")
    assert_exact(deployment)
    (copy,) = [
        each for each in deployment.broker.committed("onecount.rekeyed") if b'"c1"' in (each.value() or b"")[:20]
    ]
    assert len(copy.value() or b"") < 300, "what nobody counts is left out"
    assert attributed(deployment)["c1"].user_id == "ann"


def test_an_event_in_another_format_finds_its_user_and_its_letter_can_be_sent_again() -> None:
    version = msgspec.structs.replace(POLICY.versions[0], formats=("cloudevents",))
    with deployed(Deployment(msgspec.structs.replace(POLICY, versions=(version,)))) as deployment:
        for event_id, click_id in (("c1", "k1"), ("c2", "never")):
            lead = {"event_id": event_id, "event_type": "conversion", "event_time": START_MS, "advertiser_id": "shop"}
            value, headers = structured(lead | {"click_id": click_id, "conversion_name": "purchase"})
            deployment.broker.append("ads.events", 0, value=value, headers=headers, timestamp=START_MS)
        send(deployment, "click", "e1", -1, "ann", click_id="k1")
        send(deployment, "click", "e2", 8, "ann", click_id="k2")
        assert_exact(deployment)
        assert (attributed(deployment)["c1"].status, letters(deployment)) == ("counted", [reasons.CLICK_NOT_FOUND])
        (message,) = deployment.broker.committed("ads.events.dlq")
        letter = rows.decode_dead_letter(message.value() or b"")
        again = base64.b64decode(letter.value_base64 or "")
        assert not isinstance(judge_event(again, True), Rejection), "plain JSON, without the envelope's headers"


def test_a_rebuild_publishes_nothing_beside_another_partitions_batch() -> None:
    with deployed(Deployment(POLICY, 2)) as deployment:
        ids = [next(f"k{n}" for n in range(99) if home(f"k{n}") == partition) for partition in (0, 1)]
        for number, click_id in enumerate(ids):
            send(deployment, "click", f"e{number}", 0, "ann", click_id=click_id)
            send(deployment, "conversion", f"c{number}", 1, click_id=click_id)
            send(deployment, "conversion", f"lost{number}", -9, click_id=f"{click_id}?")
        deployment.drain()
        deployment.memory.empty("{m0}")
        deployment.forget(deployment.workers["matcher-0"].session)
        deployment.workers["matcher-0"].session = None
        send(deployment, "conversion", "c2", 2, click_id=ids[1])
        assert_exact(deployment)
        assert deployment.rebuilt["matcher"] == 1
        assert set(attributed(deployment)) == {"c0", "c1", "c2"}


def home(click_id: str) -> int:
    """The partition of two that a click id lies on."""
    return owner_of(click_key("shop", click_id).decode(), 2, "murmur2")


@pytest.mark.parametrize("has_matched", [True, False])
def test_a_matcher_whose_state_and_offsets_are_gone_begins_anew_only_if_it_never_sent_anything(
    deployment: Deployment, has_matched: bool
) -> None:
    send(deployment, "conversion", "c1", 1)
    if has_matched:
        send(deployment, "click", "e1", 0, "ann", click_id="k1")
    assert_exact(deployment)
    deployment.empty_redis("matcher")
    deployment.broker.offsets.pop(deployment.settings.matcher_group)
    for name in ("matcher-0", "matcher-1"):
        deployment.forget(deployment.workers[name].session)
        deployment.workers[name].session = None
    if has_matched:
        with pytest.raises(StateRefused, match="holds events that it matched, but their state is lost"):
            deployment.drain()
    else:
        send(deployment, "click", "e1", 0, "ann", click_id="k1")
        assert_exact(deployment)
        assert set(attributed(deployment)) == {"c1"}
