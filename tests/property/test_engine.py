"""The whole pipeline on the backends in memory: whatever comes and whatever happens, the oracle's answer is published."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from hypothesis import event, given, note
from hypothesis import strategies as st

from tests.memory.deployment import deployed
from tests.property.checks import differences
from tests.property.clicked import make_clicked_world
from tests.property.dense import make_dense_world
from tests.property.forgets import delete_older
from tests.property.plans import Action, Story, make_plan
from tests.property.worlds import World, make_world

Told = tuple[World, int, list[Action]]


@st.composite
def stories(draw: st.DrawFn, make: Callable[[Random], World]) -> Told:
    """A world, how many partitions its deltas have, and what happens.

    All of it comes from one seed, since hypothesis makes long stories too much alike; what it does well is to leave out, one
    by one, the records and actions that a failure does not need (those drawn as 0).
    """
    chance = Random(draw(st.integers(0, 2**64)))
    world = make(chance)
    happens = make_plan(chance, world.order, world.policy.bounds.click_ids is not None)
    deltas = chance.randint(1, 2)
    kept = st.integers(0, 29)
    arrivals = tuple(arrival for arrival in world.arrivals if draw(kept))
    return replace(world, arrivals=arrivals), deltas, [action for action in happens if draw(kept)]


def assert_exact(story: Told) -> None:
    """Lets the story happen, everything be counted, and compares it with the oracle's answer."""
    world, delta_partitions, happens = story
    play = Story(world, delta_partitions)
    with deployed(play.deployment) as deployment:
        for action in happens:
            play.play(action)
        play.finish()
        delete_older(deployment)
        for fault in play.happened:
            event(fault)
        found = differences(deployment)
        for worker in deployment.workers.values():
            note(f"{worker.name}: last ended by {worker.ended or 'nothing'}")
        assert not found, "\n".join(found)


@given(stories(make_world))
def test_what_is_published_is_the_oracles_answer_whatever_comes_and_whatever_happens(
    story: Told,
) -> None:
    assert_exact(story)


@given(stories(make_dense_world))
def test_what_one_user_changes_again_and_again_is_exact_whatever_happens(
    story: Told,
) -> None:
    assert_exact(story)


@given(stories(make_clicked_world))
def test_events_that_name_only_a_click_find_its_user_exactly_once_whatever_happens(
    story: Told,
) -> None:
    assert_exact(story)
