"""Rebuilds from a log that retention has cut, in any world: nothing is published by them, and what comes then is counted right."""

from dataclasses import replace
from random import Random

from hypothesis import event, given
from hypothesis import strategies as st

from tests.memory.deployment import Deployment, deployed
from tests.property.checks import differences
from tests.property.forgets import delete_older
from tests.property.plans import Story
from tests.property.worlds import World, make_long_world


def cut(deployment: Deployment) -> bool:
    """Retention removes every raw record that a rebuild does not ask for; whether there was one. They lie in order of time."""
    retention_ms = deployment.policy.conversion_retention_ms()
    removed = False
    for (topic, _), log in deployment.broker.logs.items():
        if topic not in deployment.settings.events_topics:
            continue
        times = [message.timestamp()[1] for message, _ in log.entries if message is not None]
        if not times:
            continue
        log.first = max((at for at, time_ms in enumerate(times) if time_ms <= times[-1] - retention_ms), default=0)
        removed |= log.first > 0
    return removed


def published(deployment: Deployment) -> list[tuple[str, bytes | None, bytes | None]]:
    """All that was ever published but the deltas, which tell of a rebuild that it changed nothing."""
    settings = deployment.settings
    topics = (settings.attributed_topic, settings.journeys_topic, settings.models_topic, settings.counts_topic)
    return [
        (message.topic(), message.key(), message.value())
        for topic in (*topics, settings.dlq_topic)
        for message in deployment.broker.committed(topic)
    ]


@st.composite
def long_worlds(draw: st.DrawFn) -> tuple[World, int]:
    """A world whose first records are older than a rebuild reads, and after how many of them the state is lost."""
    chance = Random(draw(st.integers(0, 2**64)))
    world = make_long_world(chance)
    kept = st.integers(0, 29)
    arrivals = tuple(arrival for arrival in world.arrivals if draw(kept))
    return replace(world, arrivals=arrivals), draw(st.integers(0, len(arrivals)))


@given(long_worlds())
def test_a_rebuild_from_a_cut_log_publishes_nothing_and_goes_on_exactly(told: tuple[World, int]) -> None:
    world, count = told
    play = Story(world, 1)
    with deployed(play.deployment) as deployment:
        play.arrive(count)
        deployment.drain()
        delete_older(deployment)
        before = published(deployment)
        event(f"cut: {cut(deployment)}")
        deployment.empty_redis("counter")
        deployment.drain()
        assert published(deployment) == before
        play.finish()
        for log in deployment.broker.logs.values():
            log.first = 0  # the oracle judges all of it
        delete_older(deployment)
        assert not differences(deployment)
