"""The whole pipeline on the backends in memory: whatever comes and whatever happens, what is published is the oracle's answer."""

from hypothesis import event, given, note
from hypothesis import strategies as st

from tests.memory.deployment import deployed
from tests.property.checks import differences
from tests.property.plans import Action, Story, kinds_of_action
from tests.property.worlds import World, worlds


@st.composite
def stories(draw: st.DrawFn) -> tuple[World, int, list[Action]]:
    """A world, how many partitions its deltas have, and what happens."""
    world = draw(worlds())
    action = draw(kinds_of_action(world.order))
    happens = [draw(action) for _ in range(draw(st.sampled_from([4, 10, 20, 30])))]
    return world, draw(st.integers(1, 2)), happens


@given(stories())
def test_what_is_published_is_the_oracles_answer_whatever_happens(story: tuple[World, int, list[Action]]) -> None:
    world, delta_partitions, happens = story
    play = Story(world, delta_partitions)
    with deployed(play.deployment) as deployment:
        for action in happens:
            play.play(action)
        play.finish()
        for fault in play.happened:
            event(fault)
        found = differences(deployment)
        for worker in deployment.workers.values():
            note(f"{worker.name}: last ended by {worker.ended or 'nothing'}")
        assert not found, "\n".join(found)
