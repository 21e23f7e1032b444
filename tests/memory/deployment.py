"""A whole onecount in memory: counters and aggregators on one `Broker` and one `Memory`, moved a step at a time.

Nothing here decides when anything happens: a test says whose turn it is, how many records it may read, and what goes wrong
at which of the engine's steps (`app.engine.failpoint.passing`). A worker behaves as `app.engine.loop.Worker` does: whatever
its session raises ends the session, and its next turn begins a new one.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from confluent_kafka import KafkaException

from app.engine import loop, rebuild
from app.engine import session as session_module
from app.engine.fold import Fold
from app.engine.ledger import Mode
from app.engine.session import Session, SessionEnded
from app.engine.stages import make_stage
from app.engine.store import Server, StoreUnavailable
from app.formats.schemas import RegistryUnavailable
from app.policy.model import Policy
from app.settings import Settings
from tests.memory.kafka import MemoryClients
from tests.memory.log import Broker
from tests.memory.redis import Memory, MemoryStore

MANY_ROUNDS: Final = 80  # of all workers; a deployment without faults comes to rest long before


class Crash(BaseException):
    """The process is gone, as by a power cut; nothing in the engine may catch it."""


class Silent:
    """An observer that looks away."""

    def beat(self) -> None: ...
    def step(self, name: str, seconds: float) -> None: ...
    def batch(self, fold: Fold, published_ms: float) -> None: ...
    def transaction(self, result: str) -> None: ...
    def session(self, cause: str, why: str) -> None: ...
    def redis(self, servers: list[Server]) -> None: ...
    def policy(self, policy: Policy) -> None: ...
    def owned(self, session: Session) -> None: ...


@dataclass
class Worker:
    """One worker process. `ended`: why its last session ended, for a failing test's reader."""

    role: str
    name: str
    session: Session | None = None
    ended: str = ""


class Deployment:
    """The workers, and what they share. `clock_ms` is the wall clock that idle partitions go by."""

    def __init__(
        self,
        policy: Policy,
        partitions: int = 1,
        delta_partitions: int = 1,
        events_topics: tuple[str, ...] = ("ads.events",),
        counters: int = 1,
        aggregators: int = 1,
        registry: str = "",
        matchers: int = 1,
    ) -> None:
        """`registry`: the address of a schema registry."""
        # an interval of 0 is refused by the settings' check; here it makes a turn read exactly once
        told = {"url": registry} if registry else {}
        found = Settings(events_topics=events_topics, schema_registry=told)  # type: ignore[arg-type]
        self.settings = found.model_copy(update={"commit_interval_ms": 0})
        settings = self.settings
        topics = dict.fromkeys(
            (
                *settings.input_topics(),
                settings.attributed_topic,
                settings.journeys_topic,
                settings.models_topic,
                settings.dlq_topic,
                settings.clicks_topic,
            ),
            partitions,
        )
        topics |= dict.fromkeys((settings.deltas_topic, settings.counts_topic), delta_partitions)
        self.policy = policy
        self.partitions = partitions
        self.broker = Broker(topics)
        self.memory = Memory()
        self.clients = MemoryClients(self.broker)
        self.clock_ms = 0
        self.workers = {
            f"{role}-{number}": Worker(role, f"{role}-{number}")
            for role, count in (
                ("counter", counters),
                ("aggregator", aggregators),
                ("matcher", matchers if policy.bounds.click_ids else 0),
            )
            for number in range(count)
        }
        self.rebuilt: Counter[str] = Counter()  # how often state was rebuilt, by role
        self.passings: list[str] = []  # the steps that the current turn has passed
        self.at_step: Callable[[str], None] | None = None

    def passing(self, step: str) -> None:
        """Stands in for `app.engine.failpoint.passing`."""
        self.passings.append(step)
        if self.at_step is not None:
            self.at_step(step)

    def turn(
        self,
        name: str,
        grant: int | None = None,
        rotation: int = 0,
        at_step: Callable[[str], None] | None = None,
        prepare: Callable[[Session], None] | None = None,
    ) -> int:
        """One step of a worker that may read `grant` records; how many it folded. Turns may be nested by `at_step`."""
        worker = self.workers[name]
        outer = self.passings, self.at_step
        self.passings, self.at_step = [], at_step
        session = worker.session
        try:
            if session is None:
                session = worker.session = self._begin(worker)
                session.start()
            if prepare is not None:
                prepare(session)
            session.consumer.grant, session.consumer.turn = grant, rotation
            folded = loop.step(session, self.settings, Silent())
            if worker.session is not session:  # replaced meanwhile: it does not know, and goes on
                loop.step(session, self.settings, Silent())
                self._end(worker, session)
            return folded
        except (SessionEnded, StoreUnavailable, RegistryUnavailable, KafkaException) as error:
            worker.ended = f"{type(error).__name__}: {error}"
            self._end(worker, session)
        except Crash as error:
            worker.ended = f"crash {error}"
            self.forget(session)
            if worker.session is session:
                worker.session = None
        finally:
            self.rebuilt[worker.role] += self.passings.count("rebuilt")
            self.passings, self.at_step = outer
        return 0

    def _begin(self, worker: Worker) -> Session:
        stage, reading = make_stage(worker.role, self.settings, self.policy, self.clients)
        return Session(self.settings, stage, MemoryStore(self.memory), self.clients, reading, worker.name)

    def _end(self, worker: Worker, session: Session | None) -> None:
        if session is not None:
            session.close()
            session.store.close()
        if worker.session is session:
            worker.session = None

    def forget(self, session: Session | None) -> None:
        """What a session timeout does: the group goes on without the member, who may yet be alive."""
        if session is not None and session.consumer.member is not None:
            session.consumer.group.leave(session.consumer.member)

    def group(self, role: str) -> Any:
        """The consumer group of a role."""
        return self.clients.group(self.settings.group_of(role))

    def idle(self, name: str) -> None:
        """Lets the idle timeout of a worker's partitions run out."""
        worker = self.workers[name]
        if worker.session is None:
            return
        clock = loop.IdleClock()
        try:
            clock.look(worker.session, Silent())
            clock.seen = {partition: (read, float("-inf")) for partition, (read, _) in clock.seen.items()}
            clock.look(worker.session, Silent())
        except SessionEnded as error:
            worker.ended = f"SessionEnded: {error}"
            self._end(worker, worker.session)

    def empty_redis(self, role: str) -> None:
        """Loses all state of a role at once."""
        self.memory.empty("{" + self.settings.tag(role[0]))

    def drain(self) -> None:
        """Without any further fault, lets everyone work until nothing is left to do."""
        for _ in range(MANY_ROUNDS):
            self.broker.expire_transactions()
            folded = sum(self.turn(name) for name in self.workers)
            if not folded and self._is_shared_out() and all(map(self._rests, self.workers.values())):
                return
        ends = {worker.name: worker.ended for worker in self.workers.values()}
        raise AssertionError(f"no rest after {MANY_ROUNDS} rounds; the last sessions ended by {ends}")

    def _is_shared_out(self) -> bool:
        """Whether every partition has the owner that it is to have."""
        leading = {"counter": self.settings.rekeyed_topic, "aggregator": self.settings.deltas_topic}
        if self.policy.bounds.click_ids is not None:
            leading["matcher"] = self.settings.clicks_topic
        return all(
            self.group(role).owners.get(partition, "nobody") == self.group(role).target(partition)
            for role, topic in leading.items()
            for partition in range(self.broker.topics[topic])
        )

    def _rests(self, worker: Worker) -> bool:
        """Whether a worker has nothing left to read or to settle."""
        if worker.session is None:
            return False
        return all(
            owned.mode is Mode.LIVE and not owned.pending and owned.at_end == set(owned.read)
            for owned in worker.session.owned.values()
        )


@contextmanager
def deployed(deployment: Deployment) -> Iterator[Deployment]:
    """Lets the deployment hear of the engine's steps, and gives the engine its wall clock."""
    clock = SimpleNamespace(
        monotonic=time.monotonic, perf_counter=time.perf_counter, time=lambda: deployment.clock_ms / 1000
    )
    with (
        patch.object(session_module, "passing", deployment.passing),
        patch.object(loop, "passing", deployment.passing),
        patch.object(rebuild, "passing", deployment.passing),
        patch.object(rebuild, "SETTLED_S", 0),
        patch.object(rebuild, "HEARD_S", 0),
        patch.object(loop, "give_back", lambda: None),
        patch.object(loop, "time", clock),
    ):
        try:
            yield deployment
        finally:
            for worker in deployment.workers.values():
                if worker.session is not None:
                    with suppress(SessionEnded):
                        worker.session.close()
