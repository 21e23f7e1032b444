"""The loop: where control flow lives. A batch passes its steps in this order, and a crash between any two is settled
by `Session.reopen`:

1. read a batch            4. one transaction: outputs and input offsets
2. watch the ledgers       5. one MULTI: state and ledgers
3. fold it
"""

import threading
import time
from typing import Protocol

from confluent_kafka import KafkaException

from app.engine.clients import Clients
from app.engine.failpoint import passing
from app.engine.fold import Batch, Fold
from app.engine.ledger import Mode
from app.engine.policy_topic import end_offset, establish, version_count
from app.engine.rebuild import finish_rebuild, refuse_short_log
from app.engine.session import Session, SessionEnded
from app.engine.stages import make_stage
from app.engine.state import StateRefused
from app.engine.store import RedisStore, StoreUnavailable, unsafe_settings
from app.policy.model import Policy
from app.settings import Settings

BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
POLICY_LOOK_S = 10.0  # well within the notice that a new version of the policy must give


class Observer(Protocol):
    """Who is told what the loop does."""

    def beat(self) -> None: ...
    def step(self, name: str, seconds: float) -> None: ...
    def batch(self, fold: Fold, records: int) -> None: ...
    def session(self, state: str, detail: str) -> None: ...
    def policy(self, policy: Policy) -> None: ...
    def owned(self, session: Session) -> None: ...


class Worker:
    """Runs one stage until told to stop. A broker or Redis outage makes it wait, never end; a refused state ends it."""

    def __init__(self, settings: Settings, role: str, worker: str, observer: Observer, clients: Clients) -> None:
        self.settings = settings
        self.role = role
        self.worker = worker
        self.observer = observer
        self.clients = clients
        self.stop = threading.Event()
        self.versions = 0

    def run(self) -> None:
        """Counts until `stop` is set. Raises `StateRefused`, `StoreRefused` or `PolicyError` where going on would
        count wrongly.
        """
        failures = 0
        while not self.stop.is_set():
            self.observer.beat()
            store = RedisStore(self.settings.redis_url.get_secret_value(), self.settings.request_timeout_ms / 1000)
            session = None
            try:
                refuse_unsafe(store)
                policy, known = establish(self.settings, self.clients)
                stage, reading = make_stage(self.role, self.settings, policy, self.clients)
                session = Session(self.settings, stage, store, self.clients, reading, self.worker)
                session.start()
                self.observer.policy(policy)
                self.versions = len(policy.versions)
                self._run_session(session, known)
                failures = 0
            except (SessionEnded, StoreUnavailable, KafkaException) as error:
                self.observer.session("ended", str(error))
                failures = 1 if session is not None and session.folded else failures + 1
                self.stop.wait(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])
            finally:
                if session is not None:
                    session.close()
                store.close()

    def _run_session(self, session: Session, policy_end: int) -> None:
        idle, looked = IdleClock(), time.monotonic()
        while not self.stop.is_set():
            self.observer.beat()
            step(session, self.settings, self.observer)
            idle.look(session)
            if time.monotonic() - looked >= POLICY_LOOK_S:
                looked = time.monotonic()
                policy_end = self._look_at_policy(policy_end)

    def _look_at_policy(self, known_end: int) -> int:
        """The record's end; a version that this worker does not judge by yet ends the session, and the next one reads it."""
        end = end_offset(self.settings, self.clients)
        if end != known_end and version_count(self.settings, self.clients) != self.versions:
            raise SessionEnded("the policy has a new version")
        return end


def refuse_unsafe(store: RedisStore) -> None:
    """Raises `StateRefused` where Redis may evict what was counted."""
    found = unsafe_settings(store)
    if found:
        raise StateRefused("; ".join(found))


def step(session: Session, settings: Settings, observer: Observer) -> int:
    """One turn: reads a batch and carries it through; how many records it folded."""
    started = time.perf_counter()
    _read(session, settings)  # 1.
    for partition, owned in session.owned.items():
        if owned.mode is Mode.REBUILD and not owned.log_checked:
            refuse_short_log(session, partition)
            owned.log_checked = True
    batches = {partition: taken for partition, owned in session.owned.items() if (taken := owned.take())}
    read_s = time.perf_counter() - started
    if batches:
        observer.step("read", read_s)
        _carry(session, batches, observer)
    for partition, owned in list(session.owned.items()):
        if owned.mode is not Mode.LIVE and owned.is_caught_up():
            if owned.mode is Mode.REBUILD:
                finish_rebuild(session, partition)
            owned.mode = Mode.LIVE
    observer.owned(session)
    return sum(len(batch.records) for batch in batches.values())


def _read(session: Session, settings: Settings) -> None:
    """Fills the partitions' pending records: until the commit interval is over, or the batch is as large as it may be."""
    deadline = time.monotonic() + settings.commit_interval_ms / 1000
    count, size_bytes = 0, 0
    while count < settings.max_batch_events and size_bytes < settings.max_batch_bytes:
        left_s = deadline - time.monotonic()
        taken, bytes_taken = session.poll(settings.max_batch_events - count, max(left_s, 0))
        count += taken
        size_bytes += bytes_taken
        if time.monotonic() >= deadline:
            break
    passing("batch_read")


def _carry(session: Session, batches: dict[int, Batch], observer: Observer) -> None:
    """Steps 2 to 5 for one batch of several partitions."""
    owned = session.owned
    suppressed = {partition for partition in batches if owned[partition].mode is not Mode.LIVE}
    marks = [time.perf_counter()]
    session.watch(list(batches))  # 2.
    marks.append(time.perf_counter())
    fold = session.stage.fold(batches, suppressed, session.store.run)  # 3.
    marks.append(time.perf_counter())
    offsets = {partition: _reached(owned[partition].next, batch) for partition, batch in batches.items()}
    live = {partition: found for partition, found in offsets.items() if partition not in suppressed}
    if live:
        session.publish(fold, live)  # 4.
    marks.append(time.perf_counter())
    rebuilding = {partition for partition in suppressed if owned[partition].mode is Mode.REBUILD}
    session.write(fold, offsets, rebuilding)  # 5.
    marks.append(time.perf_counter())
    for name, begun, ended in zip(("watch", "fold", "publish", "write"), marks, marks[1:], strict=False):
        observer.step(name, ended - begun)
    count = sum(len(batch.records) for batch in batches.values())
    session.folded += count
    observer.batch(fold, count)


def _reached(start: dict[str, int], batch: Batch) -> dict[str, int]:
    """The first offset of each topic that the batch leaves undone: last + 1; all topics, so that none's offsets expire in the group."""
    return start | {topic: after for topic, (_, after) in batch.ranges.items()}


class IdleClock:
    """Tells the stage of partitions that have had no record for the idle timeout, so that their watermarks move on by
    the clock.
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[dict[str, int], float]] = {}

    def look(self, session: Session) -> None:
        """Publishes what the stage has to say for the partitions that are idle now."""
        now = time.monotonic()
        timeout_s = session.stage.idle_timeout_ms / 1000
        idle = []
        for partition, owned in session.owned.items():
            read, since = self.seen.get(partition, ({}, now))
            if read != owned.read or owned.pending or owned.mode is not Mode.LIVE or owned.at_end != set(owned.read):
                self.seen[partition] = (dict(owned.read), now)
            elif now - since >= timeout_s:
                idle.append(partition)
                self.seen[partition] = (dict(owned.read), now)
        if not idle:
            return
        fold = session.stage.idle(idle, int(time.time() * 1000))
        if fold.outputs:
            session.publish(fold, {partition: dict(session.owned[partition].next) for partition in idle})
