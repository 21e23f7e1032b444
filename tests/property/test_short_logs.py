"""A rebuild from a log whose old records retention has removed, as it does: what was counted stays as it is.

The log reaches back exactly as far as workers ask for (`Stage.rebuild_ms`), and the last conversions that are held hang on
events of before that.
"""

import json

import msgspec
import pytest

from app.policy.model import Policy
from tests.memory.deployment import Deployment, deployed
from tests.property.policies import START_MS, UNIT_MS
from tests.property.test_engine_stories import BOUNDS, POLICY, send
from tests.property.test_journey_stories import POLICY as FOLLOWED

BOUNDS_OF_12 = msgspec.structs.replace(BOUNDS, correction_horizon_ms=2 * UNIT_MS, order_window_ms=10 * UNIT_MS)


def remove_old(deployment: Deployment, before: float) -> None:
    """Retention removes the raw records that are older than so many steps of the grid."""
    for (topic, _), log in deployment.broker.logs.items():
        if topic in deployment.settings.events_topics:
            times = [message.timestamp()[1] if message is not None else 0 for message, _ in log.entries]
            log.first = next(at for at, time_ms in enumerate(times) if time_ms >= START_MS + round(before * UNIT_MS))


def latest(deployment: Deployment, topic: str) -> dict[bytes | None, dict]:
    """The last row of each key, without its revision."""
    found = {message.key(): message.value() for message in deployment.broker.committed(topic)}
    return {key: json.loads(value) | {"revision": 0} for key, value in found.items() if value is not None}


@pytest.mark.parametrize("policy", [Policy(BOUNDS_OF_12, POLICY.versions), FOLLOWED], ids=["platforms", "journeys"])
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
        topics = ("conversions.attributed", "conversions.journeys", "conversions.models")
        before = [latest(deployment, topic) for topic in topics]
        remove_old(deployment, end - retention)
        deployment.empty_redis("counter")
        send(deployment, "click", "after", end, user_id="bob")
        deployment.drain()
        assert deployment.rebuilt["counter"] == 1
        assert [latest(deployment, topic) for topic in topics] == before
