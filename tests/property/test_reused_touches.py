"""A touch's id that comes again when what was counted for it may be let go: what is counted then hangs on no retention.

Where an action counts one a touch, the place is the id's, since a landing page that is reloaded brings the same click id again and
again; and it must not matter whether a counter still holds, has let go, or has lost and rebuilt what had the place before.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from app.contract import rows
from app.policy.model import Policy
from tests.memory.deployment import Deployment, deployed
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import BOUNDS, POLICY, assert_exact, send
from tests.property.test_journey_stories import JOURNEYS
from tests.property.test_rebuilds import lose
from tests.upserts import latest

FORGETFUL = msgspec.structs.replace(
    BOUNDS, dedup_window_ms=4, correction_horizon_ms=2 * UNIT_MS
)  # an id is soon a new one
PLATFORMS = Policy(FORGETFUL, POLICY.versions)
EVERYTHING = Policy(msgspec.structs.replace(FORGETFUL, journeys=JOURNEYS), POLICY.versions)
SHORT_ORDERS = Policy(msgspec.structs.replace(FORGETFUL, order_window_ms=UNIT_MS), POLICY.versions)
ORDERS = FORGETFUL.order_window_ms / UNIT_MS  # in steps of the grid, as all times here
HELD = POLICY.versions[0].platforms["meta"].windows_ms["click"] / UNIT_MS
RETENTION = PLATFORMS.conversion_retention_ms() / UNIT_MS
MOMENT = 1 / UNIT_MS


@dataclass(frozen=True)
class Tale:
    """Clicks of ann, all with one id, and her sign-ups, by their times in steps of the grid; and what becomes of those."""

    clicks: tuple[float, ...]
    signups: dict[float, str]
    retracted: tuple[float, ...] = ()
    policies: tuple[Policy, ...] = (PLATFORMS, EVERYTHING)


TALES = {
    "soon": Tale((0, 2), {1: "counted", 3: "uncounted"}),
    "within an order's window": Tale((0, 8), {1: "counted", 1 + ORDERS: "uncounted"}),
    "a moment beyond it": Tale((0, 8), {1: "counted", 1 + ORDERS + MOMENT: "counted"}),
    "long after": Tale(
        (0, 5 * RETENTION), {1: "counted", 5 * RETENTION + 1: "counted", 5 * RETENTION + 2: "uncounted"}
    ),
    "again and again": Tale(
        tuple(range(0, 45, 5)),
        {at: "counted" if at % 12 == 1 else "uncounted" for at in range(1, 45, 6)},
    ),
    "just when the first may be let go": Tale(
        (0, RETENTION + 1),
        {1: "counted", RETENTION + 1.5: "counted"},
    ),
    "what did not count holds no place": Tale(
        (0, 8, 12, 20), {1: "counted", 9: "uncounted", 12.5: "counted", 22: "uncounted", 29: "unattributed"}
    ),
    "one touch is one, however short an order's window": Tale(
        (0,), {1: "counted", 4: "uncounted", 8: "uncounted"}, policies=(SHORT_ORDERS,)
    ),
    "the next touch is another one where that is short": Tale(
        (0, 5), {1: "counted", 4: "uncounted", 5.5: "counted", 7: "uncounted"}, policies=(SHORT_ORDERS,)
    ),
    "a retraction frees the place for the next in line": Tale(
        (0, 8), {1: "retracted", 9: "counted", 1 + ORDERS + 1: "uncounted"}, retracted=(1,)
    ),
}
CASES = [
    pytest.param(tale, policy, id=f"{name}{', with journeys' if policy.bounds.journeys else ''}")
    for name, tale in TALES.items()
    for policy in tale.policies
]


def rebuilt(deployment: Deployment) -> None:
    """The counter loses its state and rebuilds it from the log, which is whole, and nothing is published by that."""
    deployment.drain()
    topic = deployment.settings.attributed_topic
    before = deployment.broker.committed(topic)
    lose(deployment, "counter")
    deployment.drain()
    assert deployment.broker.committed(topic) == before


def let_go(deployment: Deployment) -> None:
    """Nothing that may be let go of ann is held any longer, since she is settled."""
    deployment.drain()
    at = (deployment.broker.now_ms - START_MS) / UNIT_MS
    send(deployment, "adjustment", f"of nothing {at}", at, adjustment="retract", conversion_event_id="nothing")
    deployment.drain()


BETWEEN = {"one batch": lambda _: None, "each its own": Deployment.drain, "let go": let_go, "rebuilt": rebuilt}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(("tale", "policy"), CASES)
def test_what_a_touch_s_id_counts_hangs_on_its_events_alone(tale: Tale, policy: Policy, between: str) -> None:
    events: list[tuple[float, str, str, dict[str, Any]]] = [(at, "click", "k", {}) for at in tale.clicks]
    events += [(at, "conversion", f"x{at}", {"conversion_name": "signup"}) for at in tale.signups]
    events += [
        (at + 0.5, "adjustment", f"a{at}", {"adjustment": "retract", "conversion_event_id": f"x{at}"})
        for at in tale.retracted
    ]
    with deployed(Deployment(policy)) as deployment:
        for at, kind, event_id, fields in sorted(events, key=lambda each: each[0]):
            send(deployment, kind, event_id, at, **fields)
            BETWEEN[between](deployment)
        assert_exact(deployment)
        published = latest((row.key(), row.value()) for row in deployment.broker.committed("conversions.attributed"))
        found = {row.event_id: row.status for row in map(rows.decode_attributed, published.values())}
        assert found == {f"x{at}": status for at, status in tale.signups.items()}
