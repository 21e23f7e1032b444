"""A batch is folded only on the state that its worker left: same epoch, same offsets."""

import json
from collections.abc import Iterator, Sequence

import pytest

from app.contract.events import TOUCH_ATTRIBUTES
from app.engine import ledger
from app.engine.ledger import ledger_key
from app.engine.session import Session, SessionEnded
from app.policy.model import DAY_MS, Action, Bounds, Platform, Policy, Version
from tests.memory.deployment import Deployment, deployed
from tests.property.checks import differences

START_MS = 1_764_000_000_000
POLICY = Policy(
    Bounds(
        keep=TOUCH_ATTRIBUTES,
        correction_horizon_ms=7 * DAY_MS,
        max_event_age_ms=7 * DAY_MS,
        dedup_window_ms=2 * DAY_MS,
        order_window_ms=90 * DAY_MS,
        adjustment_window_ms=55 * DAY_MS,
    ),
    (
        Version(
            1,
            0,
            {"meta": Platform("click", {"click": 7 * DAY_MS}, {})},
            {"purchase": Action("macro", "hard", "revenue", "every", None)},
        ),
    ),
)
LEDGER = ledger_key("c", 0).encode()
LOST_WRITES = "not what this worker left"


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """Two counters and an aggregator over one partition."""
    with deployed(Deployment(POLICY, counters=2)) as found:
        yield found


def send_click(deployment: Deployment, number: int) -> None:
    """One click; each of another user."""
    event = {"event_id": f"k{number}", "event_type": "click", "event_time": START_MS + number, "platform": "meta"}
    event |= {"advertiser_id": "shop", "user_id": f"u{number}", "campaign_id": "c1"}
    deployment.broker.append("ads.events", 0, value=json.dumps(event).encode(), timestamp=START_MS + number)


def count_click(deployment: Deployment, number: int, counter: str = "counter-0") -> None:
    """One click, through both stages."""
    send_click(deployment, number)
    for name in (counter, "aggregator-0"):
        deployment.turn(name)


@pytest.mark.parametrize("lost_after", [0, 1, 3])
def test_a_failover_that_lost_writes_and_kept_the_connection_ends_the_session(
    deployment: Deployment, lost_after: int
) -> None:
    for number in range(lost_after):
        count_click(deployment, number)
    disk = deployment.memory.copy() if lost_after else _opened_only(deployment)
    for number in range(lost_after, lost_after + 2):
        count_click(deployment, number)
    deployment.memory.lose_tail(disk)
    count_click(deployment, 9)
    assert LOST_WRITES in deployment.workers["counter-0"].ended
    deployment.drain()
    found = differences(deployment)
    assert not found, "\n".join(found)


def _opened_only(deployment: Deployment) -> dict[bytes, object]:
    """What Redis holds when the partitions are opened and nothing was counted: ledgers with an epoch and no offsets."""
    for name in ("counter-0", "aggregator-0"):
        deployment.turn(name)
    disk = deployment.memory.copy()
    assert {key: set(fields) for key, fields in disk.items()} == {
        ledger_key(tag, 0).encode(): {b"epoch"} for tag in ("c", "a")
    }
    return disk


def test_a_former_owner_that_finds_its_epoch_again_does_not_go_on(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raise that made it the owner was lost, and the next owner's raise gave the same number."""
    monkeypatch.setattr(ledger, "EPOCH_STEP_MAX", 1)
    first, second = "counter-0", "counter-1"
    count_click(deployment, 0, first)
    disk = deployment.memory.copy()
    deployment.forget(deployment.workers[first].session)
    count_click(deployment, 1, second)
    paused = deployment.workers[second].session
    assert paused is not None
    deployment.memory.lose_tail(disk)
    deployment.forget(paused)
    deployment.workers[first].session = None
    for number in (2, 3):
        send_click(deployment, number)
        deployment.turn(first)
    assert deployment.memory.values[LEDGER][b"epoch"] == str(paused.owned[0].epoch).encode()
    with pytest.raises(SessionEnded, match=LOST_WRITES):
        paused.watch([0])
    deployment.drain()
    assert not differences(deployment)


def test_what_was_folded_on_a_state_that_was_emptied_meanwhile_is_not_published(deployment: Deployment) -> None:
    """Its repeats would not have been recognised. Here the state goes after the watch, before anything is read."""

    def empty_after_watch(session: Session) -> None:
        watch = session.watch

        def watch_and_empty(partitions: Sequence[int]) -> None:
            watch(partitions)
            deployment.empty_redis("counter")

        session.watch = watch_and_empty  # type: ignore[method-assign]

    count_click(deployment, 0)
    send_click(deployment, 0)  # the repeat
    assert deployment.turn("counter-0", prepare=empty_after_watch) == 0
    assert "emptied" in deployment.workers["counter-0"].ended
    deployment.drain()
    assert not differences(deployment)
