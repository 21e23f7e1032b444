"""Users whose conversions can no longer matter are let go of, some with each batch, whatever else comes meanwhile."""

from unittest.mock import patch

import msgspec
import orjson

from app.attribution.converters import BUCKETS
from app.engine import counter_partition
from app.engine.counter_partition import CounterPartition, read_view
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


def opened(deployment: Deployment) -> CounterPartition:
    session = deployment.workers["counter-0"].session
    assert session is not None
    found = session.stage.opened[0]
    assert isinstance(found, CounterPartition)
    return found


def reopened(deployment: Deployment) -> CounterPartition:
    before, worker = opened(deployment), deployment.workers["counter-0"]
    deployment.forget(worker.session)
    worker.session = None
    assert deployment.turn("counter-0") == 0
    after = opened(deployment)
    assert after is not before
    assert (after.swept_day, after.swept_buckets, after.swept_to) == (
        before.swept_day,
        before.swept_buckets,
        before.swept_to,
    )
    return after


def test_a_view_of_a_release_without_a_cursor_begins_its_bucket_anew() -> None:
    view = CounterPartition("{c0}", load_policy(POLICY)[0])
    view.swept_to = 2**64 - 1
    assert read_view(view.pack()).swept_to == 2**64 - 1
    assert read_view(msgspec.msgpack.encode(msgspec.msgpack.decode(view.pack())[:-1])).swept_to == 0


def test_a_day_that_ended_before_all_were_looked_through_is_made_up_for() -> None:
    view = CounterPartition("{c0}", load_policy(POLICY)[0])
    asked = []
    for day in (10, 10, 11, 11):
        view.stream_ms = day * DAY_MS
        command = view.sweep_command()
        assert command is not None
        asked.append((command[2], command[-1]))
        view.swept(7)
    assert asked == [(0, 1_000), (7, 1_000), (7, 20_000), (7, 20_000)]
    while view.swept_buckets < BUCKETS:
        view.swept(0)
    assert view.sweep_command() == ("HSCAN", view.converters.key(0), 0, "COUNT", 1_000), "the new day begins"


def test_all_users_are_looked_through_in_a_day_and_few_at_once() -> None:
    policy = load_policy(POLICY)[0]
    world = Deployment(policy)
    with deployed(world), patch.multiple(counter_partition, SWEPT_USERS=AT_ONCE, SWEPT_LATE=AT_ONCE):
        for number in range(USERS):
            send(world, f"u{number}", BEGIN_MS + number)
        assert world.turn("counter-0") == USERS
        view = opened(world)
        now_ms = BEGIN_MS + policy.conversion_retention_ms() + DAY_MS // 2
        day = now_ms // DAY_MS
        gone, cursors = [], set()
        for turn in range(10 * BUCKETS):
            before = held(world)
            send(world, f"new{turn % 50}", now_ms + turn)
            assert world.turn("counter-0") == 1
            gone.append(len(before - held(world)))
            if turn % 7 == 0:  # another worker goes on where this one ends
                view = reopened(world)
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
