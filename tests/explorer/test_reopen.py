"""Every way in which two workers can take turns, crash, pause and be overtaken, within bounds: `reopen` must settle it.

EXPLORE_FAULTS and EXPLORE_SWITCHES deepen the bounds (EXPLORE_FAULTS=3 takes hours).
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.explorer.explore import EXPLORED, Bounds, Explored, explore
from tests.explorer.world import Scene

GAP = Scene({("in", 0): "ab-cd"})
SHORT = Scene({("in", 0): "abc"})
TWO_PARTITIONS = Scene({("in", 0): "ab", ("in", 1): "cd"})
TWO_TOPICS = Scene({("in", 0): "abc", ("more", 0): "xy"}, grants=(3, 2))

Record = Callable[[str, object], None]


def bounds(faults: int, switches: int) -> Bounds:
    """The bounds, if the environment does not set deeper ones."""
    return Bounds(
        max(faults, int(os.environ.get("EXPLORE_FAULTS", 0))), max(switches, int(os.environ.get("EXPLORE_SWITCHES", 0)))
    )


def told(explored: Explored) -> str:
    """A violation, and how it came about."""
    return "\n  ".join([explored.violation, *explored.story])


@pytest.mark.timeout(0 if os.environ.keys() & {"EXPLORE_FAULTS", "EXPLORE_SWITCHES"} else 300)
@pytest.mark.parametrize(
    ("scene", "within"),
    [
        pytest.param(SHORT, bounds(2, 0), id="one-partition"),
        pytest.param(GAP, bounds(1, 1), id="one-partition-with-a-gap"),
        pytest.param(TWO_PARTITIONS, bounds(1, 0), id="two-partitions"),
        pytest.param(TWO_TOPICS, bounds(1, 1), id="two-topics"),
    ],
)
def test_whatever_goes_wrong_at_whatever_step_every_record_counts_once(
    scene: Scene, within: Bounds, record_property: Record
) -> None:
    explored = explore(scene, within)
    summary = (
        f"{explored.states} states, {explored.transitions} transitions, {explored.runs} runs "
        f"(up to {within.faults} faults, {within.switches} switches in mid step)"
    )
    record_property(EXPLORED, summary)
    assert not explored.violation, told(explored)
    assert explored.ends > 0, "no run came to its end"


def test_a_rebuild_sees_what_is_published_behind_a_former_owners_open_transaction() -> None:
    """A is paused at `produced` and overtaken; B commits its first batch behind A's open transaction, and hears no answer.

    B then reads back what is published: up to A's transaction only, it would miss its own batch and publish it again. It takes
    a transaction that outlives its owner's membership: `transaction_timeout_ms` is below `session_timeout_ms`, but brokers
    look for such transactions every 10 s only.
    """
    explored = explore(replace(SHORT, hangs=True), Bounds(2, 0))
    assert not explored.violation, told(explored)
