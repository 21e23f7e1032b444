"""A small world for the explorer: two workers, one input log, one Redis, and what may go wrong with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from confluent_kafka import KafkaException

from app.engine import loop, rebuild
from app.engine import session as session_module
from app.engine.ledger import Mode, ledger_key
from app.engine.session import Reading, Session, SessionEnded
from app.engine.store import StoreUnavailable
from app.settings import Settings
from tests.explorer.chain import TAG, ChainStage
from tests.memory.deployment import Crash, Silent
from tests.memory.kafka import Group, MemoryClients
from tests.memory.log import Broker, Fate, Outcome, Place, Transaction
from tests.memory.redis import Command, Lost, Memory, MemoryStore

GROUP: Final = "group"
PUBLISHED: Final = "published"
GAP: Final = "-"  # a control record in the input: it takes an offset and is never read
SETTINGS: Final = Settings().model_copy(update={"commit_interval_ms": 0})  # a turn reads exactly once


class Violation(Exception):
    """The engine broke a promise."""


@dataclass(frozen=True)
class Scene:
    """What is in the input, by topic and partition (a letter a record), and how many records each worker reads at once.
    The last letter of each log comes when all others are counted.

    The workers read differently much, so what one published in one batch the other would cut otherwise.
    """

    logs: dict[Place, str]
    grants: tuple[int, int] = (2, 3)
    hangs: bool = False  # whether a former owner's transaction may still be open when its successor rebuilds

    @property
    def partitions(self) -> range:
        return range(1 + max(partition for _, partition in self.logs))

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(topic for topic, _ in self.logs))


class Process:
    """One worker process: its session if it has one, and where in its turn it is paused."""

    def __init__(self, name: str, grant: int) -> None:
        self.name = name
        self.grant = grant
        self.session: Session | None = None
        self.passed: list[str] = []  # the steps of the turn it is in
        self.paused = False
        self.dead = False  # replaced by a new process of its name; what is left of it is one turn


class WatchedStore(MemoryStore):
    """A connection that sees to it that only the latest owner of a partition writes its state."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.memory)
        self.world = world

    def _one(self, command: Command) -> Any:
        if command[0] == "HINCRBY" and self.queue is None:
            self.world.note_change()
            self.world.takers[command[1]] = self
        return super()._one(command)

    def _exec(self) -> list[Any] | None:
        written = {command[1] for command in self.queue or ()}
        self.world.note_change()
        done = super()._exec()
        for key, taker in self.world.takers.items():
            if done is not None and key in written and taker is not self:
                raise Violation(f"a former owner wrote the state of {key}")
        return done


class OwnedBroker(Broker):
    """A broker that sees to it that only the latest owner of a partition commits its offsets."""

    world: "World"

    def end(self, transaction: Transaction, outcome: Outcome) -> None:
        super().end(transaction, outcome)
        if outcome is Outcome.COMMITTED:
            for _, partition in transaction.offsets.get(GROUP, {}):
                opener = self.world.openers.get(partition)
                if opener is not None and opener.transaction is not transaction:
                    raise Violation(f"a former owner of partition {partition} committed after it was taken over")


class World:
    """Everything that the workers share, and the workers."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        topics = dict.fromkeys((*scene.topics, PUBLISHED), len(scene.partitions))
        self.broker = OwnedBroker(topics)
        self.broker.world = self
        self.memory = Memory()
        self.disks: list[dict[bytes, Any]] = []  # what Redis held before each of its changes
        self.clients = MemoryClients(self.broker)
        self.takers: dict[str, MemoryStore] = {}  # who raised each ledger's epoch last
        self.openers: dict[int, Any] = {}  # the producer of who finished `reopen` last
        self.at_step: Callable[[Process, str], None] | None = None
        self.slots = {name: Process(name, grant) for name, grant in zip("AB", scene.grants, strict=True)}
        self.left_behind: list[Process] = []  # paused processes that were replaced by new ones of the same name
        self.paused: list[Process] = []  # the latest last
        self.current = self.slots["A"]
        self.healing = False
        self.group: Group = self.clients.group(GROUP)
        self.group.wanted = {number: "AB"[number % 2] for number in scene.partitions}

    def begin(self) -> None:
        """Both workers join and open what they are to own; then the records come."""
        for process in (*self.slots.values(), *self.slots.values()):
            self.turn(process)
        for place, letters in self.scene.logs.items():
            self._arrive(place, letters[:-1])

    def heal(self) -> None:
        """From now on nothing goes wrong; the last records come, by which the workers see what was lost meanwhile."""
        self.healing = True
        for place, letters in self.scene.logs.items():
            self._arrive(place, letters[-1])

    def _arrive(self, place: Place, letters: str) -> None:
        for letter in letters:
            if letter == GAP:
                self.broker.logs[place].entries.append((None, None))
            else:
                self.broker.append(*place, value=letter)

    def processes(self) -> list[Process]:
        """All there are, replaced ones too."""
        return [*self.slots.values(), *self.left_behind]

    def note_change(self) -> None:
        """Keeps what Redis held before a change."""
        self.disks = [*self.disks[-2:], self.memory.copy()]

    def passing(self, step: str) -> None:
        """Stands in for `app.engine.failpoint.passing`."""
        process = self.current
        process.passed.append(step)
        if step == "reopened" and process.session is not None:
            for partition in process.session.owned:
                if self.takers.get(ledger_key(TAG, partition)) is process.session.store:
                    self.openers[partition] = process.session.producer
            if not self.scene.hangs:
                self._expire_hanging(process.session)
        if self.at_step is not None:
            self.at_step(process, step)

    def turn(self, process: Process) -> None:
        """One step of a worker, as `app.engine.loop.Worker` makes them: whatever its session raises ends the session."""
        self.current = process
        process.passed = []
        try:
            session = process.session
            if session is None:
                session = process.session = self._begin(process.name)
                session.start()
            session.stage.folding = ()
            session.consumer.grant = process.grant
            loop.step(session, SETTINGS, Silent())
        except (SessionEnded, StoreUnavailable, KafkaException):
            self.end(process)
        except Crash:
            self.forget(process)
            process.session = None
        process.passed = []
        if process.session is not None:
            process.session.stage.folding = ()
            process.session.store.lost.clear()
        for entry in self.broker.ids.values():
            entry.fates.clear()

    def _begin(self, name: str) -> Session:
        reading = Reading(GROUP, self.scene.topics, {PUBLISHED: 0})
        return Session(SETTINGS, ChainStage(PUBLISHED), WatchedStore(self), self.clients, reading, name)

    def end(self, process: Process) -> None:
        """The session is over; the process begins a new one at its next turn."""
        if process.session is not None:
            process.session.close()
            process.session.store.close()
        process.session = None

    def forget(self, process: Process) -> None:
        """What the session timeout does: the group goes on without the member, who may yet be alive."""
        if process.session is not None:
            self.group.leave(process.session.consumer.member)

    def other(self, process: Process) -> Process:
        """The worker of the other name."""
        return self.slots["B" if process.name == "A" else "A"]

    def hand_over(self, process: Process) -> None:
        """From now on what the worker was to own is to be the other's."""
        for partition, name in self.group.wanted.items():
            if name == process.name:
                self.group.wanted[partition] = self.other(process).name

    def replace(self, process: Process) -> Process:
        """A new process of the same name begins, while the old one is paused; the new one."""
        self.left_behind.append(process)
        process.dead = True
        fresh = self.slots[process.name] = Process(process.name, process.grant)
        return fresh

    def arm(self, process: Process, fate: Fate | Lost) -> None:
        """The commit or the write that comes next gets no answer."""
        assert process.session is not None
        if isinstance(fate, Fate):
            self.broker.transactional_id(process.session.producer.name).fates.append(fate)
        else:
            process.session.store.lost.append(fate)

    def lose_all(self) -> None:
        """Redis is emptied, and with it what its disk held."""
        self.memory.empty()
        self.disks = []

    def lose_last(self, changes: int) -> None:
        """Redis restarts without its last changes."""
        self.memory.fall_back(self.disks[-changes])
        self.disks = self.disks[:-changes]

    def _expire_hanging(self, session: Session) -> None:
        """A former owner's transaction is over before its successor reads back what was published.

        The timeouts in the settings see to it. Without it, a rebuild would not see what is published behind that
        transaction (test_reopen.py has the story).
        """
        is_rebuilt = any(owned.mode is Mode.REBUILD for owned in session.owned.values())
        for name, entry in self.broker.ids.items():
            if is_rebuilt and name != session.producer.name and entry.transaction is not None:
                self.broker.new_epoch(name)

    def is_blocked_for(self, process: Process) -> bool:
        """Whether a worker can open no partition, since another one's open transaction carries the offsets."""
        own = self.broker.transactional_id(f"{GROUP}-{process.name}").transaction
        return own is None and self.broker.is_unstable(GROUP, set(self.scene.logs))


@contextmanager
def stage_set() -> Iterator[Callable[[Scene], World]]:
    """Gives what begins a world; the engine's steps are heard by the one that was begun last."""
    latest: list[World] = []

    def begin(scene: Scene) -> World:
        latest[:] = [World(scene)]
        latest[0].begin()
        return latest[0]

    def passing(step: str) -> None:
        latest[0].passing(step)

    with (
        patch.object(session_module, "passing", passing),
        patch.object(loop, "passing", passing),
        patch.object(rebuild, "passing", passing),
    ):
        yield begin
