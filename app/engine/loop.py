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

from app.columns.table import StateDamaged
from app.engine.clients import Clients, Topic, explained
from app.engine.course import read_course
from app.engine.failpoint import passing
from app.engine.fold import Batch, Fold
from app.engine.layout import refuse_changed_topics
from app.engine.ledger import Mode
from app.engine.memory import give_back
from app.engine.offsets import refuse_unproven
from app.engine.policy_topic import end_offset, establish, version_count, write_topics
from app.engine.rebuild import finish_rebuild, refuse_short_log
from app.engine.session import Session, SessionEnded
from app.engine.stages import make_stage
from app.engine.state import OffsetsRefused, StateRefused
from app.engine.store import ClusterStore, RedisStore, Server, StoreUnavailable, look_at, open_store, unsafe_settings
from app.formats.schemas import RegistryUnavailable
from app.policy.model import Policy
from app.settings import Settings

ASK_AGAIN_S = 5.0  # longer than a coordinator takes to read the offsets of its groups
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# How often the policy record and Redis's settings are looked at anew: well within the notice that a new version of the
# policy must give, and the longest that a worker counts on a Redis that was told to evict.
LOOK_S = 10.0
# How long a batch of late events may take, as a share of how late they are, in commit intervals, and in all: a row that changes
# again meanwhile is written once, and nobody sees a tenth of a delay.
LATE_SHARE = 0.1
LATE_INTERVALS = 5
LATE_S = 1.0


class Observer(Protocol):
    """Who is told what the loop does."""

    def beat(self) -> None: ...
    def step(self, name: str, seconds: float) -> None: ...
    def batch(self, fold: Fold, published_ms: float) -> None: ...
    def transaction(self, result: str) -> None: ...
    def session(self, cause: str, why: str) -> None: ...
    def redis(self, servers: list[Server]) -> None: ...
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
        self.topics: dict[str, Topic] = {}

    def run(self) -> None:
        """Counts until `stop` is set. Raises `StateRefused`, `StoreRefused` or `PolicyError` where going on would
        count wrongly.
        """
        failures, has_doubt = 0, False
        while not self.stop.is_set():
            self.observer.beat()
            store = session = None
            try:
                store = open_store(self.settings.redis_url.get_secret_value(), self.settings.request_timeout_ms / 1000)
                self._look_at(store)
                self.topics, fresh = refuse_changed_topics(self.settings, self.role, self.clients)
                policy, known = establish(self.settings, self.clients, runs=self.versions > 0)
                if fresh:
                    write_topics(self.settings, self.clients, fresh)
                stage, reading = make_stage(self.role, self.settings, policy, self.clients)
                session = Session(self.settings, stage, store, self.clients, reading, self.worker, self.observer.beat)
                self.observer.beat()  # each step above and below may have waited for an answer
                session.start()
                self.observer.beat()
                self.observer.policy(policy)
                self.versions = len(policy.versions)
                self._run_session(session, store, known)
                failures = 0
            except OffsetsRefused as error:
                if has_doubt:
                    raise
                has_doubt = True
                self.observer.session("kafka", f"asking the group once more: {error}")
                self.stop.wait(ASK_AGAIN_S)
            except (SessionEnded, StoreUnavailable, StateDamaged, RegistryUnavailable, KafkaException) as error:
                if session is not None and session.unsettled is not None:
                    self.observer.transaction(session.unsettled)
                self.observer.session(cause_of(error), explained(error))
                has_counted = session is not None and session.folded > 0
                failures = 1 if has_counted else failures + 1
                has_doubt = has_doubt and not has_counted
                self.stop.wait(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])
            finally:
                if session is not None:
                    session.close()
                if store is not None:
                    store.close()
                session = store = None
                give_back()

    def _run_session(self, session: Session, store: RedisStore | ClusterStore, policy_end: int) -> None:
        idle, looked = IdleClock(), time.monotonic()
        while not self.stop.is_set():
            self.observer.beat()
            step(session, self.settings, self.observer)
            idle.look(session, self.observer)
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                self._look_at(store)
                session.producer.poll(0)  # for what it has to log; an idle one is not called otherwise
                policy_end = self._look_around(policy_end)

    def _look_at(self, store: RedisStore | ClusterStore) -> None:
        """Tells the observer of Redis. Raises `StateRefused` where it may evict what was counted."""
        servers = look_at(store)
        self.observer.redis(servers)
        found = unsafe_settings(servers)
        if found:
            raise StateRefused("; ".join(found))

    def _look_around(self, known_end: int) -> int:
        """The policy record's end. A version that this worker does not judge by yet ends the session, and so does a topic
        that changed: the next one reads the version, and refuses the topic.
        """
        if self.clients.topics(self.topics) != self.topics:
            raise SessionEnded("a topic was given more partitions, deleted, or created again", "topics")
        end = end_offset(self.settings, self.clients)
        if end != known_end and version_count(self.settings, self.clients) != self.versions:
            raise SessionEnded("the policy has a new version", "policy")
        return end


def cause_of(error: Exception) -> str:
    """Why a session ended, as it is counted."""
    if isinstance(error, SessionEnded):
        return error.cause
    causes = {StoreUnavailable: "redis", StateDamaged: "state", RegistryUnavailable: "registry"}
    return next((cause for kind, cause in causes.items() if isinstance(error, kind)), "kafka")


def step(session: Session, settings: Settings, observer: Observer) -> int:
    """One turn: reads a batch and carries it through; how many records it folded."""
    started = time.perf_counter()
    _read(session, settings)  # 1.
    _prove(session)
    batches = {partition: taken for partition, owned in session.owned.items() if (taken := owned.take())}
    session.hold_back(session.owned)
    read_s = time.perf_counter() - started
    if batches:
        passing("batch_read")
        observer.step("read", read_s)
        _carry(session, batches, observer)
    newest_ms = session.stage.newest_ms
    session.late_s = time.time() - newest_ms / 1000 if batches and newest_ms else 0.0
    for partition, owned in list(session.owned.items()):
        if owned.mode is Mode.REPLAY and owned.is_caught_up():
            owned.mode = Mode.LIVE
        elif owned.mode is Mode.REBUILD and owned.is_caught_up():
            if finish_rebuild(session, partition):
                observer.transaction("committed")
            owned.mode, owned.course = Mode.LIVE, None
            give_back()
            break  # the next one follows with the next turn, as the group must hear of this worker meanwhile
    observer.owned(session)
    return sum(len(batch.records) for batch in batches.values())


def _prove(session: Session) -> None:
    """Before a partition's first batch: refuses offsets and logs by which it cannot be counted."""
    if unconfirmed := [partition for partition, owned in session.owned.items() if not owned.is_confirmed]:
        session.confirm_offsets(unconfirmed)
        for partition in unconfirmed:
            owned = session.owned[partition]
            if owned.mode is Mode.REBUILD and session.reading.marks_topic is not None:
                owned.course = read_course(session.clients, session.reading.marks_topic, partition, owned.next_ms)
    fresh = [partition for partition, owned in session.owned.items() if not owned.is_proven]
    if not fresh:
        return
    refuse_unproven(session, fresh)
    for partition in fresh:
        if session.owned[partition].mode is Mode.REBUILD and not session.stored[partition]:
            refuse_short_log(session, partition)
        session.owned[partition].is_proven = True


def _read(session: Session, settings: Settings) -> None:
    """Fills the partitions' pending records: until the commit interval since the last batch was closed is over and no more are at
    hand, or the batch is as large as it may be. A batch that follows late events may take longer while more keep coming.
    """
    interval_s = settings.commit_interval_ms / 1000
    deadline = session.closed_at + interval_s
    latest = session.closed_at + min(session.late_s * LATE_SHARE, interval_s * LATE_INTERVALS, LATE_S)
    bytes_max = settings.max_batch_bytes // session.reading.share
    count, size_bytes = 0, 0
    while count < settings.max_batch_events and size_bytes < bytes_max:
        wanted = min(settings.max_batch_events - count, session.reading.slice_records)
        came, bytes_came = session.poll(wanted, max(deadline - time.monotonic(), 0))
        count += came
        size_bytes += bytes_came
        now = time.monotonic()
        if came:
            deadline = max(deadline, min(now + interval_s, latest))
        if came < wanted and now >= deadline:
            break
    session.closed_at = time.monotonic()


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
        session.confirm(list(live))
        session.publish(fold, live)  # 4.
        observer.transaction("committed")
    marks.append(time.perf_counter())
    published_ms = time.time() * 1000
    rebuilding = {partition for partition in suppressed if owned[partition].mode is Mode.REBUILD}
    session.write(fold, offsets, rebuilding)  # 5.
    marks.append(time.perf_counter())
    for name, begun, ended in zip(("watch", "fold", "publish", "write"), marks, marks[1:], strict=False):
        observer.step(name, ended - begun)
    session.folded += sum(len(batch.records) for batch in batches.values())
    observer.batch(fold, published_ms)


def _reached(start: dict[str, int], batch: Batch) -> dict[str, int]:
    """The first offset of each topic that the batch leaves undone: last + 1; all topics, so that none's offsets expire in the group."""
    return start | {topic: after for topic, (_, after) in batch.ranges.items()}


class IdleClock:
    """Tells the stage of partitions that have had no record for the idle timeout, so that their watermarks move on by
    the clock.
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[dict[str, int], float]] = {}

    def look(self, session: Session, observer: Observer) -> None:
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
            observer.transaction("committed")
