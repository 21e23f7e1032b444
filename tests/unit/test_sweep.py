"""Users whose conversions can no longer matter are let go of, some with each batch, whatever else comes meanwhile."""

from unittest.mock import patch

import orjson

from app.attribution.converters import BUCKETS
from app.engine import counter_partition
from app.engine.counter_partition import read_view
from app.policy.load import load_policy
from app.policy.model import DAY_MS
from tests.integration.deployment import POLICY
from tests.memory.deployment import Deployment, deployed

USERS = 4 * BUCKETS
AT_ONCE = 3
BEGIN_MS = 1_700_000_000_000


def send(deployment: Deployment, user: str, time_ms: int) -> None:
    event = {"event_id": f"{user}.{time_ms}", "event_type": "conversion", "event_time": time_ms, "platform": "meta"}
    event |= {"advertiser_id": "shop", "user_id": user, "conversion_name": "signup"}
    deployment.broker.append("ads.events", 0, key=user.encode(), value=orjson.dumps(event), timestamp=time_ms)


def held(deployment: Deployment) -> set[str]:
    """The users that Redis holds."""
    values = deployment.memory.values.items()
    return {field.decode().split("\x1f")[1] for key, found in values if b":conv:" in key for field in found}


def test_all_users_are_looked_through_in_a_day_and_few_at_once() -> None:
    policy = load_policy(POLICY)[0]
    world = Deployment(policy)
    with deployed(world), patch.object(counter_partition, "SWEPT_USERS", AT_ONCE):
        for number in range(USERS):
            send(world, f"u{number}", BEGIN_MS + number)
        assert world.turn("counter-0") == USERS
        session = world.workers["counter-0"].session
        assert session is not None
        view = session.stage.opened[0]
        now_ms = BEGIN_MS + policy.conversion_retention_ms() + DAY_MS // 2
        day = now_ms // DAY_MS
        gone, cursors = [], set()
        for turn in range(10 * BUCKETS):
            before = held(world)
            send(world, f"new{turn % 50}", now_ms + turn)
            assert world.turn("counter-0") == 1
            gone.append(len(before - held(world)))
            assert read_view(view.pack()).swept_to == view.swept_to
            cursors.add(view.swept_to)
            if (view.swept_day, view.swept_buckets) == (day, BUCKETS):
                break
        assert (now_ms + turn) // DAY_MS == day
        assert {name[:3] for name in held(world)} == {"new"}
        assert sum(gone) == USERS
        assert max(gone) <= AT_ONCE
        assert len(gone) > BUCKETS
        assert len(cursors) > 1
        assert view.sweep_command() is None, "once a day"
