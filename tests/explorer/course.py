"""One run of a world: who does a step next and what goes wrong, decided anew at every step of the engine.

A turn that is paused in its middle stays on the stack, under the turns that come meanwhile. Where it goes on while a later
one stands in mid step too, that is no stack any more: then every paused turn keeps its thread, and one of them runs.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from app.engine.ledger import Mode
from tests.explorer.world import Process, Violation, World
from tests.memory.deployment import Crash
from tests.memory.log import Fate
from tests.memory.redis import Lost

MANY_CHOICES: Final = 1_500


class Over(BaseException):
    """The run has ended; what is paused must unwind."""


class NoStack(Exception):
    """A paused turn is to go on before a later one: run again with threads."""


class Choice(NamedTuple):
    """What may happen next, and what it costs: a fault, or a switch to another worker in mid step."""

    what: str
    name: str = ""  # the worker meant
    detail: Any = None
    faults: int = 0
    switches: int = 0

    def __str__(self) -> str:
        detail = getattr(self.detail, "value", self.detail)
        return " ".join(str(part) for part in (self.what, self.name, detail) if part not in ("", None))


GO_ON: Final = Choice("goes on")
HEAL: Final = Choice("all is counted, the last records come")
END: Final = Choice("end")


@dataclass
class Course:
    """Carries a world from choice to choice. `choose` is asked before every step, with what may happen, the default first."""

    world: World
    choose: Callable[[list[Choice], str], Choice]
    threaded: bool = False

    def run(self) -> None:
        """Runs to the end. Raises what ended it early: `Violation`, or whatever `choose` raises."""
        self.stack: list[Process] = []
        self.batons: dict[int, threading.Semaphore] = {}
        self.threads: list[threading.Thread] = []
        self.finished = threading.Event()
        self.failure: BaseException | None = None
        self.over = False
        self.choices = 0
        self.world.at_step = self._at_step
        self._carry(None)
        self.finished.wait()
        for thread in self.threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _carry(self, first: Process | None) -> None:
        """Turn after turn, on this thread, until a paused turn is resumed or the run ends."""
        try:
            if first is not None:
                self.world.turn(first)
            while True:
                choice = self._ask(_at_rest(self.world), "at rest")
                if choice is END:
                    self._finish(None)
                    return
                if choice.what == "resumes":
                    self._wake(_paused_one(self.world, choice))
                    return
                if choice.what == "takes a turn":
                    self.world.turn(self.world.slots[choice.name])
                else:
                    _strike(self.world, choice, self.world.slots.get(choice.name, self.world.current))
        except Over:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._finish(error)

    def _finish(self, failure: BaseException | None) -> None:
        self.failure, self.over = failure, True
        for baton in self.batons.values():
            baton.release()
        self.finished.set()

    def _ask(self, options: list[Choice], place: str) -> Choice:
        self.choices += 1
        if self.choices > MANY_CHOICES:
            raise Violation("the run comes to no end")
        return self.choose(options, place)

    def _at_step(self, process: Process, step: str) -> None:
        """Called in the middle of a turn: returns when the turn is to go on."""
        if self.over:
            raise Over
        while True:
            choice = self._ask(_in_step(self.world, process, step), f"{process.name} at {step}")
            if choice is GO_ON or choice.what == "goes on":
                return
            if choice.what == "crashes":
                raise Crash(step)
            successor = _strike(self.world, choice, process)
            if successor is not None:
                self._pause(process, successor)
                return

    def _pause(self, process: Process, successor: Process) -> None:
        """Others go on; returns when the process is resumed."""
        process.paused = True
        self.world.paused.append(process)
        baton = self.batons[id(process)] = threading.Semaphore(0)
        if successor.paused:
            if not self.threaded:
                raise NoStack
            self._wake(successor)
        elif self.threaded:
            self.threads.append(threading.Thread(target=self._carry, args=(successor,)))
            self.threads[-1].start()
        else:
            self.stack.append(process)
            self._carry(successor)
        baton.acquire()
        if self.over:
            raise Over
        process.paused = False
        self.world.paused.remove(process)
        self.world.current = process

    def _wake(self, process: Process) -> None:
        if not self.threaded and self.stack.pop() is not process:
            raise NoStack
        self.batons.pop(id(process)).release()


def _at_rest(world: World) -> list[Choice]:
    """Between turns: whoever has something to do, and paused turns; whom it is to be costs nothing."""
    _bury(world)
    others = [process for process in world.slots.values() if process is not world.current]
    ready = [process for process in (world.current, *others) if not process.dead and not process.paused]
    waiting = [process for process in ready if process.session is None and world.is_blocked_for(process)]
    busy = [process for process in ready if process not in waiting and not _rests(world, process)]
    turns = [Choice("takes a turn", process.name) for process in busy]
    if waiting:  # it would only try again and again
        turns.insert(0, Choice("transactions expire"))
    resumed = [_resumption(process) for process in reversed(world.paused)]
    if not turns and not resumed:
        return [END if world.healing else HEAL]
    faults = [
        Choice("is thought dead", process.name, faults=1)
        for process in ready
        if process.session is not None and process.session.owned
    ]
    return [*turns, *resumed, *(faults if turns and not world.healing else [])]


def _bury(world: World) -> None:
    """A replaced process is gone once its turn is over."""
    for process in [process for process in world.left_behind if not process.paused]:
        world.end(process)
        world.left_behind.remove(process)


def _resumption(process: Process, switches: int = 0) -> Choice:
    return Choice("resumes", process.name, "(replaced)" if process.dead else None, switches=switches)


def _in_step(world: World, process: Process, step: str) -> list[Choice]:
    """In the middle of a turn: it goes on, or something goes wrong, or another worker goes on first."""
    options = [GO_ON, *(() if world.healing else _faults(world, process, step))]
    for other in world.processes():
        if other is process:
            continue
        if other.paused:
            options.append(_resumption(other, switches=1))
        elif not other.dead and not _rests(world, other):
            options.append(Choice("takes a turn", other.name, switches=1))
    return options


def _faults(world: World, process: Process, step: str) -> list[Choice]:
    """What may go wrong while a worker stands at a step."""
    options = [Choice("crashes", process.name, faults=1)]
    if not process.dead:
        options.append(Choice("is paused and overtaken", process.name, faults=1))
        options.append(Choice("is paused and replaced", process.name, faults=1))
    if process.name in world.group.wanted.values():
        options.append(Choice("loses its partitions at its next poll", process.name, faults=1))
    if world.memory.values:
        options.append(Choice("Redis is emptied", faults=1))
    options += [Choice("Redis loses its last changes", detail=n, faults=1) for n in (1, 3) if len(world.disks) >= n]
    if any(entry.transaction is not None for entry in world.broker.ids.values()):
        options.append(Choice("transactions expire", faults=1))
    return options + [Choice("the next answer is lost", process.name, fate, 1) for fate in _fates(process, step)]


def _fates(process: Process, step: str) -> list[Fate | Lost]:
    """What may become of the commit or the write that comes next."""
    session = process.session
    if session is None or session.store.lost:
        return []
    if step == "offsets_sent":
        return list(Fate)
    replays = any(owned.mode is not Mode.LIVE for owned in session.owned.values())
    if step == "committed" or (replays and step in ("batch_read", "state_written")):
        return list(Lost)
    return []


def _rests(world: World, process: Process) -> bool:
    """Whether a worker has nothing to read or to settle, and owns what it is to own."""
    session = process.session
    if session is None or session.failure is not None or session.consumer.member not in world.group.members:
        return False
    member = session.consumer.member
    for partition in world.scene.partitions:
        owner = world.group.owners.get(partition)
        if (owner == member) != (world.group.target(partition) == member):
            return owner is not None and owner != member  # it waits until the owner has been told
    is_settled = all(owned.mode is Mode.LIVE and not owned.pending for owned in session.owned.values())
    return is_settled and all(
        offset >= world.broker.logs[place].stable_end() for place, offset in session.consumer.places.items()
    )


def _strike(world: World, choice: Choice, process: Process) -> Process | None:
    """Lets a fault happen; the process that goes on, if it is another one."""
    match choice.what:
        case "is thought dead":
            world.forget(process)
        case "is paused and overtaken":
            world.forget(process)
            world.hand_over(process)
            return world.other(process)
        case "is paused and replaced":
            world.forget(process)
            return world.replace(process)
        case "loses its partitions at its next poll":
            world.hand_over(process)
        case "Redis is emptied":
            world.lose_all()
        case "Redis loses its last changes":
            world.lose_last(choice.detail)
        case "transactions expire":
            world.broker.expire_transactions()
        case "the next answer is lost":
            world.arm(process, choice.detail)
        case HEAL.what:
            world.heal()
        case "takes a turn":
            return world.slots[choice.name]
        case "resumes":
            return _paused_one(world, choice)
    return None


def _paused_one(world: World, choice: Choice) -> Process:
    return next(
        process
        for process in world.paused
        if (process.name, process.dead) == (choice.name, choice.detail == "(replaced)")
    )
