"""The desk of one process: sessions, one after the other, and what is to be known of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from threading import Event
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from app.desk.fold import DeskFold
from app.desk.leads import LeadsFold
from app.desk.lease import Lease
from app.desk.log import Batch, Ends, Place, described, places_of, read_log
from app.desk.periods import LONGEST_MS
from app.desk.published import LeadTally, Published
from app.desk.reconciliation import Reconciliation
from app.desk.returns import Returns
from app.desk.rollups import RollupsFold
from app.desk.session import DeskEnded, Session
from app.engine.clients import KafkaClients, Topic, explained
from app.engine.policy_topic import recorded_policy, version_count
from app.engine.session import SessionEnded
from app.observe.logs import KafkaLog
from app.observe.metrics import Metrics
from app.policy.desk import Desk as DeskPolicy
from app.policy.model import Policy
from app.settings import Settings

LOOK_EVERY_S: Final = 2.0  # at the ends of the topics
LOOK_AROUND_EVERY_S: Final = 10.0  # whether the topics and the policy are the same; well within a new version's notice
SILENT_AFTER_S: Final = 15.0
_RETRY_S: Final = (0.5, 1.0, 2.0, 5.0)
_log = structlog.get_logger()

Give = Callable[[Session, Batch], Coroutine[Any, Any, None]]


def folds_of(settings: Settings, policy: Policy, desk: DeskPolicy, partitions: int) -> list[DeskFold]:
    """The questions that the desk answers, with nothing in mind yet. `partitions`: those of `conversions.counts`."""
    assert policy.bounds.journeys is not None
    return [
        LeadsFold(
            settings.journeys_topic,
            settings.followups_topic,
            settings.leads_topic,
            settings.overdue_topic,
            settings.refused_followups_topic,
            desk,
            policy.bounds.journeys.orders,
            policy.bounds.max_clock_skew_ms,
            max(policy.count_retention_ms(), 2 * desk.closed_kept_ms),
        ),
        RollupsFold(settings.counts_topic, settings.rollups_topic, desk, policy, partitions),
        Reconciliation(settings, policy, desk),
        Returns(settings, policy, desk),
    ]


class Desk:
    """Belongs to one event loop. `session` is the present one, or the last; None before the first."""

    def __init__(self, settings: Settings, desk: DeskPolicy, metrics: Metrics) -> None:
        kafka_log = KafkaLog(metrics.kafka_line, role="desk", worker=settings.worker_id)
        self.session: Session | None = None
        self.stopping = asyncio.Event()
        self.shown: Published | None = None  # what the views show: the present session's, once it has read everything
        self.answered_ms = 0  # when Kafka last answered, epoch ms
        self.behind: int | None = None  # offsets that were there at the last look and are not read yet; None: unknown
        self.failure: BaseException | None = None
        self.tally = LeadTally(settings.leads_topic, settings.overdue_topic)
        self._settings, self._desk, self._metrics = settings, desk, metrics
        self._policy: Policy | None = None  # that of the present session, or of the last one
        self._versions = 0  # that were recorded then
        self._clients = KafkaClients(settings, kafka_log.logger)
        self._lease = Lease(settings, self._clients)
        self._ended: DeskEnded | KafkaException | None = None
        self._stop_reading = Event()
        self._tries = 0
        self._is_read = False  # the present session has read all that was there at its start
        self._is_silent = False
        self._told_trouble = ""

    @property
    def is_current(self) -> bool:
        """Whether all that is there has been read, and Kafka answers."""
        return self._is_read and _now_ms() - self.answered_ms < SILENT_AFTER_S * 1000

    @property
    def role(self) -> str:
        """What this process does at the moment."""
        if self.session is not None and self.session.is_active:
            return "active"
        return "standby" if self._is_read else "reading"

    async def work(self, give: Give) -> None:
        """Sessions until `stopping`. `give` hands a batch on to where `take` is called. Raises `PolicyError` where the policy's
        file does not fit what is recorded.
        """
        self._lease.start()
        try:
            while not self.stopping.is_set():
                try:
                    await self._session(give)
                except (KafkaException, SessionEnded, DeskEnded) as error:
                    cause = "kafka" if isinstance(error, KafkaException) else error.cause
                    self._metrics.session(cause, explained(error))
                    self._ended = None
                await self._wait(_RETRY_S[min(self._tries, len(_RETRY_S) - 1)])
                self._tries += 1
        finally:
            self._stop_reading.set()
            await asyncio.to_thread(self._lease.stop)

    async def _session(self, give: Give) -> None:
        self._policy = policy = await asyncio.to_thread(self._in_force)
        counts = self._settings.counts_topic
        topics = await asyncio.to_thread(self._described, [counts])
        folds = folds_of(self._settings, policy, self._desk, topics[counts].partitions)
        names = sorted({name for fold in folds for name in (*fold.inputs, *fold.outputs)})
        topics = await asyncio.to_thread(self._described, names)
        self.tally = LeadTally(self._settings.leads_topic, self._settings.overdue_topic)
        rollups_ms = policy.count_retention_ms() + 2 * LONGEST_MS
        outputs = [name for fold in folds for name in fold.outputs]
        published = Published(outputs, {self._settings.rollups_topic: rollups_ms}, self.tally)
        session = Session(self._settings, self._clients, self._lease, places_of(topics), folds, published, _now_ms)
        self.session, self.behind, self._is_read, self._ended = session, None, False, None
        stop = self._stop_reading = Event()
        loop = asyncio.get_running_loop()

        def hand_on(batch: Batch) -> None:
            asyncio.run_coroutine_threadsafe(give(session, batch), loop).result()

        reading = asyncio.create_task(asyncio.to_thread(read_log, self._clients, session.places, hand_on, stop))
        try:
            await self._watch(session, topics, reading)
        finally:
            self._lease.ask(False)  # another desk may be ready
            self._is_read = False
            session.end()
            stop.set()
            await asyncio.wait([reading])
        reading.result()

    def _described(self, names: Iterable[str]) -> dict[str, Topic]:
        return described(self._clients, names, partial(DeskEnded, "topics"))

    def _in_force(self) -> Policy:
        """What the counters judge by: every version that is recorded, or the file's where none is yet. A desk that runs takes up
        what they record meanwhile. Raises `PolicyError`.
        """
        self._described([self._settings.policy_topic])
        self._versions = version_count(self._settings, self._clients)
        return recorded_policy(self._settings, self._clients, runs=self._policy is not None)

    def _look_around(self, topics: dict[str, Topic]) -> None:
        """Raises `DeskEnded` where what the session reads, or what it goes by, is not the same any more."""
        if self._clients.topics(topics) != topics:
            raise DeskEnded("topics", "a topic was made anew or given more partitions")
        if version_count(self._settings, self._clients) != self._versions and self._in_force() != self._policy:
            raise DeskEnded("policy", "the policy has a new version")

    async def _watch(self, session: Session, topics: dict[str, Topic], reading: asyncio.Task[None]) -> None:
        """Until the session ends: how far behind it is, and whether topics and policy are still the same."""
        ends, before, looked_s = Ends(self._settings), None, time.monotonic()
        while not self.stopping.is_set() and not reading.done():
            if self._ended is not None:
                raise self._ended
            before = await self._look(session, ends, before)
            if self.is_current and time.monotonic() - looked_s > LOOK_AROUND_EVERY_S:
                looked_s = time.monotonic()
                await asyncio.to_thread(self._look_around, topics)
            await self._wait(LOOK_EVERY_S if self._is_read else LOOK_EVERY_S / 10)

    async def _look(self, session: Session, ends: Ends, before: dict[Place, int] | None) -> dict[Place, int] | None:
        """Measures what was there at the look before and is not read yet. An outage ends no session: reading goes on after it."""
        try:
            now = await asyncio.to_thread(ends.ask, session.places)
        except KafkaException as error:
            if not self._is_silent:
                _log.warning("no answer from Kafka", role="desk", why=explained(error))
            self._is_silent = True
            return before
        if self._is_silent:
            _log.info("Kafka answers again", role="desk")
        self.answered_ms, self._is_silent = _now_ms(), False
        if before is not None:
            self.behind = session.behind(before)
            if self.behind == 0 and not self._is_read:
                self._is_read, self._tries, self.shown = True, 0, session.published
                self._lease.ask(True)
        return before if self.behind and not self._is_read else now

    async def take(self, session: Session, batch: Batch) -> None:
        """Takes what was read in a session; what a former one read is of no more use."""
        if session is self.session:
            await session.take(batch)

    async def tick(self) -> None:
        """Publishes what there is to publish, where it is this desk's turn."""
        session = self.session
        if session is None or self._ended is not None:
            return
        before, was_active = session.rows_published, session.is_active
        try:
            await session.tick()
        except (KafkaException, DeskEnded) as error:
            if session is self.session:
                self._ended = error
        self._metrics.desk_rows(session.rows_published - before)
        if session.is_active and not was_active:
            _log.info("active", role="desk", rows=session.rows_published)

    async def tell(self) -> None:
        """Tells the metrics how things stand."""
        metrics, session = self._metrics, self.session
        metrics.beat()
        metrics.lease(session is not None and session.is_active, self.behind or 0)
        if self._is_read:  # until then it would tell of some of them only
            metrics.leads(self.tally.leads, self.tally.overdue)
        if session is not None:
            metrics.refused(sum((fold.refused for fold in session.folds), Counter()))
            for fold in session.folds:
                if isinstance(fold, Reconciliation):
                    metrics.claims(fold.differences())
        if self._lease.trouble != self._told_trouble:
            self._told_trouble = self._lease.trouble
            _log.warning("no lease", role="desk", why=self._told_trouble)

    async def _wait(self, seconds: float) -> None:
        """Waits, but not past the stop or the end of the session."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self.stopping.is_set() and self._ended is None:
            await asyncio.sleep(min(0.1, seconds))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
