"""Every run of a small world that has at most so many faults and switches in mid step, one after another.

A run is told by where it leaves the undisturbed course: at its n-th choice it does something else than the default. Runs
with fewer faults come first, so the first violation is a short one. A run ends early in a state that was reached before
with as much still allowed: what could come from there has been, or will be, explored.
"""

from collections import deque
from dataclasses import dataclass, field

from tests.explorer.course import Choice, Course, NoStack
from tests.explorer.promises import check, check_end
from tests.explorer.state import fingerprint
from tests.explorer.world import Scene, Violation, World, stage_set

EXPLORED = "explored"  # the property of a test's report that says how much was

Deviations = tuple[tuple[int, Choice], ...]


@dataclass(frozen=True)
class Bounds:
    """How many faults, and how many switches to another worker in mid step, a run may have."""

    faults: int
    switches: int


class Known(Exception):
    """This state was reached before."""


@dataclass
class Explored:
    """What was found. `story`: the deviations of the first run that broke a promise, if any did."""

    states: int = 0
    transitions: int = 0
    runs: int = 0
    ends: int = 0
    violation: str = ""
    story: list[str] = field(default_factory=list)
    deviations: Deviations = ()


def explore(scene: Scene, bounds: Bounds) -> Explored:
    """Explores until everything within the bounds was seen, or a promise broken."""
    search = _Search(scene, bounds)
    with stage_set() as begin:
        while search.violation is None and (deviations := search.next_run()) is not None:
            try:
                search.run(begin(scene), deviations, False)
            except NoStack:
                search.run(begin(scene), deviations, True)
    return search.explored


def replay(scene: Scene, deviations: Deviations) -> list[str]:
    """One run again, and what happened in it, choice by choice. Raises its `Violation`."""
    told: list[str] = []
    left = dict(deviations)

    def choose(options: list[Choice], place: str) -> Choice:
        check(world)
        choice = left.get(len(told), options[0])
        told.append(f"{place}: {choice}")
        return choice

    with stage_set() as begin:
        world = begin(scene)
        Course(world, choose, threaded=True).run()
        check_end(world)
    return told


class _Search:
    def __init__(self, scene: Scene, bounds: Bounds) -> None:
        self.scene = scene
        self.bounds = bounds
        self.explored = Explored()
        self.violation: Violation | None = None
        self.seen: dict[int, int] = {}  # by state: the most switches that were left there
        self.waiting: list[deque[tuple[Deviations, int]]] = [deque() for _ in range(bounds.faults + 1)]
        self.waiting[0].append(((), 0))

    def next_run(self) -> Deviations | None:
        """The next run's deviations: one of those with the fewest faults."""
        for faults, queue in enumerate(self.waiting):
            if queue:
                self.faults = faults
                deviations, self.switches = queue.popleft()
                return deviations
        return None

    def run(self, world: World, deviations: Deviations, threaded: bool) -> None:
        """One run, which notes at each new state what else could have happened there."""
        explored = self.explored
        explored.runs += 1
        left = dict(deviations)
        fresh_from = deviations[-1][0] + 1 if deviations else 0
        place_of: dict[int, str] = {}
        seen_now: set[int] = set()
        number = -1

        def choose(options: list[Choice], place: str) -> Choice:
            nonlocal number
            number += 1
            if number < fresh_from:
                place_of[number] = place
                return left.get(number, options[0])
            explored.transitions += 1
            check(world)
            self._look(world, place, seen_now)
            self._note(options, deviations, number)
            return options[0]

        try:
            Course(world, choose, threaded).run()
            check(world)
            check_end(world)
            explored.ends += 1
        except (Known, NoStack) as ended:
            if isinstance(ended, NoStack):
                raise
        except Violation as violation:
            self._keep(violation, deviations, place_of)
        except Exception as error:  # noqa: BLE001 - a refusal or a failed assertion: no worker may meet one here
            self._keep(Violation(f"{type(error).__name__}: {error}"), deviations, place_of)

    def _look(self, world: World, place: str, seen_now: set[int]) -> None:
        state = fingerprint(world, place != "at rest", self.faults < self.bounds.faults)
        if state in seen_now:
            raise Violation("the workers go in circles")
        seen_now.add(state)
        left = self.bounds.switches - self.switches
        known = self.seen.get(state)
        if known is None:
            self.explored.states += 1
        elif known >= left:
            raise Known
        self.seen[state] = left

    def _note(self, options: list[Choice], deviations: Deviations, number: int) -> None:
        for option in options[1:]:
            faults, switches = self.faults + option.faults, self.switches + option.switches
            if faults <= self.bounds.faults and switches <= self.bounds.switches:
                self.waiting[faults].append(((*deviations, (number, option)), switches))

    def _keep(self, violation: Violation, deviations: Deviations, place_of: dict[int, str]) -> None:
        self.violation = violation
        self.explored.violation = str(violation)
        self.explored.story = [f"{place_of.get(number, '?')}: {choice}" for number, choice in deviations]
        self.explored.deviations = deviations
