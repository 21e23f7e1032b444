"""Rebuilds from a log that retention has cut, in any world: nothing is published by them, and what comes then is counted right."""

import json
from dataclasses import replace
from random import Random

from hypothesis import event, given, settings
from hypothesis import strategies as st

from app.verify.oracle import Answer, answer
from app.windows import deltas
from tests.memory.deployment import Deployment, deployed
from tests.property.checks import differences, input_records, oracles_answer
from tests.property.forgets import delete_older
from tests.property.plans import Story
from tests.property.policies import UNIT_MS
from tests.property.test_rebuilds import lose
from tests.property.test_short_logs import published
from tests.property.worlds import World, make_long_world


def cut(deployment: Deployment, further_ms: int) -> bool:
    """Retention removes the raw records that a rebuild does not ask for, but those of `further_ms` more. They lie in order of
    time. Whether what is left reaches back, in the events' time too, over all that can still be credited or come again.
    """
    policy, topics = deployment.policy, deployment.settings
    bounds, retention_ms = policy.bounds, policy.conversion_retention_ms()
    stream_ms: dict[int, int] = {}
    for message in deployment.broker.committed(topics.deltas_topic):
        for mark in deltas.decode(message.value() or b"").marks:
            stream_ms[mark.partition] = max(mark.watermark_ms, stream_ms.get(mark.partition, 0))
    reaches_back = True
    for partition in range(deployment.partitions):
        log = deployment.broker.logs[topics.events_topics[0], partition]
        times = [message.timestamp()[1] for message, _ in log.entries if message is not None]
        old = [at for at, time_ms in enumerate(times) if time_ms <= times[-1] - retention_ms - further_ms]
        if old and old[-1]:
            log.first = old[-1]
            known_ms = times[log.first] + bounds.max_clock_skew_ms + bounds.dedup_window_ms * 5 // 4
            reaches_back &= known_ms < stream_ms[partition] - retention_ms
    event(f"cut: {any(log.first for log in deployment.broker.logs.values())}, reaches back: {reaches_back}")
    return reaches_back


def accepts_the_same(deployment: Deployment, whole: Answer) -> bool:
    """Whether what is left of the log says of the same touches and visits as the `whole` one that they are repeats, once nothing
    is in doubt any more. It does not where an id comes again and again from before its begin on (docs/architecture.md).
    """
    bounds, left = deployment.policy.bounds, input_records(deployment)
    now = answer(left, deployment.policy, deployment.partitions)
    begins_ms: dict[int, int] = {}
    for record in left:
        begins_ms.setdefault(record.partition, record.timestamp_ms)
    doubt_ms = bounds.max_clock_skew_ms + bounds.dedup_window_ms * 5 // 4
    odd = [
        json.loads(each.value or b"")["event_type"]
        for each in left
        if each.timestamp_ms > begins_ms[each.partition] + doubt_ms
        and each.coordinates in now.duplicates ^ whole.duplicates
    ]
    return {"conversion", "adjustment"}.issuperset(odd)  # those are repeats for as long as the first is held


@st.composite
def long_worlds(draw: st.DrawFn) -> tuple[World, int, int]:
    """A world of more time than a rebuild reads; after how many of its records the state is lost; and how much more (ms) is kept
    of them than a rebuild asks for.
    """
    chance = Random(draw(st.integers(0, 2**64)))
    world = make_long_world(chance)
    count, further_ms = chance.randint(35, 65), chance.choice([0, 0, 5, 10]) * UNIT_MS
    kept = st.integers(0, 29)
    arrivals = tuple(arrival for arrival in world.arrivals if draw(kept))
    return replace(world, arrivals=arrivals), count, further_ms


@settings(max_examples=100)
@given(long_worlds())
def test_a_rebuild_from_a_cut_log_publishes_nothing_and_goes_on_exactly(told: tuple[World, int, int]) -> None:
    world, count, further_ms = told
    play = Story(world, 1)
    with deployed(play.deployment) as deployment:
        play.arrive(count)
        deployment.drain()
        delete_older(deployment)
        before, whole = published(deployment), oracles_answer(deployment)
        reaches_back = cut(deployment, further_ms)
        is_same = accepts_the_same(deployment, whole)
        event(f"accepts the same: {is_same}")
        if not is_same:
            return
        lose(deployment, "counter")
        deployment.drain()
        assert published(deployment) == before
        if not reaches_back:
            return
        play.finish()
        for log in deployment.broker.logs.values():
            log.first = 0  # the oracle judges all of it
        delete_older(deployment)
        found = differences(deployment)
        assert not found, "\n".join(found)
