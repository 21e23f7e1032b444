"""What happens to a deployment: turns, and what goes wrong in them. A fault is a value of the test's input, so a failing
example reads like a story.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from app.engine.failpoint import STEPS
from app.engine.session import Session
from tests.memory.deployment import Crash, Deployment
from tests.memory.log import Fate
from tests.memory.redis import Lost
from tests.property.worlds import Order, World

HOUR_MS: Final = 3_600_000
CRASH: Final = "crash"
# The worker is thought dead while it goes on: the other worker takes over, or a new process under the same name.
OVERTAKEN: Final = "overtaken"
REPLACED: Final = "replaced"
EMPTIED: Final = "redis emptied"
EXPIRED: Final = "transactions time out"
NO_REDIS: Final = "redis is down"
WORKERS: Final = (*["counter-0"] * 4, *["counter-1"] * 2, *["aggregator-0"] * 3, "aggregator-1")
MATCHERS: Final = (*["matcher-0"] * 4, *["matcher-1"] * 2)
IN_A_STEP: Final = (CRASH, OVERTAKEN, REPLACED, EXPIRED)


@dataclass(frozen=True)
class Turn:
    """So many records reach Kafka, then a worker makes one step, in which it may read `grant` records (None: all).

    `fault` comes when the turn passes `step`, or in its commit (`Fate`), its write (`Lost`) or its first question to Redis
    (`NO_REDIS`).
    """

    brings: int
    worker: str
    grant: int | None = None
    rotation: int = 0
    fault: str | Fate | Lost | None = None
    step: str = ""


@dataclass(frozen=True)
class Move:
    """The group hands a partition to a worker of its choice."""

    role: str
    partition: int
    number: int


@dataclass(frozen=True)
class Empty:
    """Redis loses a role's state."""

    role: str


@dataclass(frozen=True)
class FallBack:
    """Redis restarts with what its disk held this many turns ago, or only what it held of one role."""

    turns: int
    role: str = ""


@dataclass(frozen=True)
class Idle:
    """A worker's partitions are idle, and the clock is this far ahead of the events."""

    worker: str
    ahead_ms: int


Action = Turn | Move | Empty | FallBack | Idle


def make_plan(chance: Random, order: Order, has_matchers: bool = False) -> list[Action]:
    """What happens: turns, and a few of the things that may go wrong.

    Not all at once: what one fault breaks, the next one often hides. The counter loses its state only where a rebuild must
    give the same answer (see `Order`).
    """
    may_lose = ["aggregator"] if order is Order.MIXED else ["counter", "counter", "aggregator"]
    workers, roles = WORKERS, ["counter", "aggregator"]
    if has_matchers:
        workers, roles, may_lose = (*WORKERS, *MATCHERS), [*roles, "matcher"], [*may_lose, "matcher", "matcher"]
    emptied = [f"{EMPTIED} {role}" for role in may_lose]
    taken = [OVERTAKEN, OVERTAKEN, REPLACED]

    def turn(fault: str | Fate | Lost | None, steps: Sequence[str] = ("",)) -> Turn:
        brings = chance.choice([0, 1, 1, 2, 2, 3, 5])
        grant = chance.choice([None, None, None, 1, 2, 3])
        return Turn(brings, chance.choice(workers), grant, chance.randrange(4), fault, chance.choice(steps))

    kinds: dict[str, Callable[[], Action]] = {
        "crashes": lambda: turn(CRASH, STEPS),
        "takeovers": lambda: turn(chance.choice(taken), [*STEPS, *["committed"] * 4]),
        "timeouts": lambda: turn(EXPIRED, STEPS),
        "losses in a step": lambda: turn(chance.choice(emptied), STEPS),
        "losses": lambda: Empty(chance.choice(may_lose)),
        "commits": lambda: turn(chance.choice(list(Fate))),
        "writes": lambda: turn(chance.choice([*Lost, NO_REDIS])),
        "moves": lambda: Move(chance.choice(roles), chance.randrange(3), chance.randrange(2)),
        "idle": lambda: Idle(chance.choice(workers), chance.choice([0, 1, 24, 2_000]) * HOUR_MS),
    }
    if order is not Order.MIXED:
        kinds["old disks"] = lambda: FallBack(chance.randint(1, 4))
    if has_matchers:
        kinds["old disks of matchers"] = lambda: FallBack(chance.randint(1, 4), "matcher")
    chosen = chance.sample(sorted(kinds), chance.randint(1, 3))
    return [
        turn(None) if chance.random() < 0.6 else kinds[chance.choice(chosen)]()
        for _ in range(chance.choice([5, 15, 30]))
    ]


class Story:
    """Plays actions on a deployment for a world."""

    def __init__(self, world: World, delta_partitions: int, registry: str = "") -> None:
        self.world = world
        self.topics = tuple(["ads.events", "ads.more"][: world.topics])
        self.deployment = Deployment(
            world.policy, world.partitions, delta_partitions, self.topics, 2, 2, registry, matchers=2
        )
        self.to_come = list(world.arrivals)
        self.disks: list[dict[bytes, Any]] = []  # what Redis held before each turn
        self.happened: list[str] = []  # the faults that really struck, for statistics

    def play(self, action: Action) -> None:
        """Lets one action happen."""
        deployment = self.deployment
        match action:
            case Turn():
                self.disks.append(deployment.memory.copy())
                self.arrive(action.brings)
                self._turn(action)
            case Move():
                deployment.group(action.role).wanted[action.partition] = f"{action.role}-{action.number}"
            case Empty():
                deployment.empty_redis(action.role)
            case FallBack():
                if len(self.disks) >= action.turns:
                    deployment.memory.fall_back(self._disk(action))
            case Idle():
                deployment.clock_ms = deployment.broker.now_ms + action.ahead_ms
                deployment.idle(action.worker)

    def _disk(self, action: FallBack) -> dict[bytes, Any]:
        """What the disk held, where only one role's part is lost beside what there is."""
        held, now = self.disks[-action.turns], self.deployment.memory.copy()
        start = ("{" + self.deployment.settings.tag(action.role[0])).encode() if action.role else b""
        return {key: value for key, value in now.items() if not key.startswith(start)} | {
            key: value for key, value in held.items() if key.startswith(start)
        }

    def arrive(self, count: int) -> None:
        """The next records reach Kafka."""
        coming, self.to_come = self.to_come[:count], self.to_come[count:]
        for record in coming:
            self.deployment.broker.append(
                self.topics[record.topic],
                record.partition,
                key=record.key,
                value=record.value,
                timestamp=record.timestamp_ms,
                headers=list(record.headers) or None,
            )

    def finish(self) -> None:
        """Everything arrives, and is counted without any further fault."""
        self.arrive(len(self.to_come))
        self.deployment.drain()

    def _turn(self, turn: Turn) -> None:
        deployment = self.deployment
        left = [turn.fault] if turn.fault in IN_A_STEP or str(turn.fault).startswith(EMPTIED) else []

        def at_step(step: str) -> None:
            if left and step == turn.step:
                self._strike(str(left.pop()), turn.worker)

        def prepare(session: Session) -> None:
            if isinstance(turn.fault, Fate):
                deployment.broker.transactional_id(session.producer.name).fates.append(turn.fault)
            elif isinstance(turn.fault, Lost):
                session.store.lost.append(turn.fault)
            elif turn.fault == NO_REDIS:
                session.store.refuse_reads = True

        deployment.turn(turn.worker, turn.grant, turn.rotation, at_step, prepare)
        self._take_back(turn)

    def _take_back(self, turn: Turn) -> None:
        """A fault that its turn did not come to is not left for a later one."""
        unused = [fate for entry in self.deployment.broker.ids.values() for fate in entry.fates]
        for entry in self.deployment.broker.ids.values():
            entry.fates.clear()
        session = self.deployment.workers[turn.worker].session
        if session is not None:
            unused += session.store.lost
            session.store.lost.clear()
            session.store.refuse_reads = False
        if isinstance(turn.fault, Fate | Lost) and not unused:
            self.happened.append(str(turn.fault))

    def _strike(self, fault: str, name: str) -> None:
        deployment = self.deployment
        worker = deployment.workers[name]
        self.happened.append(fault)
        if fault == CRASH:
            raise Crash(deployment.passings[-1])
        if fault == EXPIRED:
            deployment.broker.expire_transactions()
        elif fault.startswith(EMPTIED):
            deployment.empty_redis(fault.removeprefix(EMPTIED).strip())
        else:
            deployment.forget(worker.session)
            if fault == REPLACED:
                worker.session = None
                successor = name
            else:
                successor = f"{worker.role}-{1 - int(name[-1])}"
            for _ in range(3):
                deployment.turn(successor)
