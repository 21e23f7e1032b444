"""Follows the output topics in a thread of its own: consumes, folds, and makes new parts of the page at most once a second.

It joins no group and commits nothing. Whatever Kafka does, what was folded stays; after an outage it reads on where it
was. Topics that were made anew (`onecount reset`) are read from the start, into an empty fold.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from app.engine.clients import KafkaClients, Topic, explained
from app.page.figures import HOUR_MS, SPANS
from app.page.fold import CONVERSIONS, COUNTS, LETTERS, empty_state, fold_record
from app.page.snapshot import news_snapshot, span_snapshot
from app.settings import Settings

PUBLISH_EVERY_S: Final = 1.0
LOOK_EVERY_S: Final = 1.0
SILENT_AFTER_S: Final = 5.0  # without an answer: then the page says so
_LOOK_TIMEOUT_S: Final = 3.0
_SAME_TOPICS_EVERY_S: Final = 5.0
_RETRY_S: Final = 1.0
_MOST_RECORDS: Final = 5_000
_WAIT_S: Final = 0.2
_LATE_MS: Final = HOUR_MS  # a row of a window in the span may be older on its topic than the span by this

Place = tuple[str, int]
Publish = Callable[[dict[str, bytes]], None]


@dataclass
class Pulse:
    """How the reading goes. Epoch ms, 0: never. `behind`: committed records not read yet, None: unknown."""

    answered_ms: int = 0
    behind: int | None = None
    share: float = 0.0  # of what was there at the start
    missing: tuple[str, ...] = ()
    trouble: str = ""

    def is_silent(self, now_ms: int) -> bool:
        """Whether Kafka has not answered for a while."""
        return now_ms - self.answered_ms > SILENT_AFTER_S * 1000


class Reader:
    """`run` is the thread's body; `pulse` may be looked at from any other."""

    def __init__(self, settings: Settings, publish: Publish) -> None:
        self.settings = settings
        self.pulse = Pulse()
        self.state = empty_state(settings.page_max_rows)
        self._kinds = {
            settings.counts_topic: COUNTS,
            settings.attributed_topic: CONVERSIONS,
            settings.dlq_topic: LETTERS,
        }
        self._publish = publish
        self._clients = KafkaClients(settings)
        self._topics: dict[str, Topic] = {}
        self._next: dict[Place, int] = {}  # the offset to read next
        self._begun: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}
        self._is_new = True  # the fold has what was not published yet
        self._published_s = 0.0

    def run(self, stop: Event) -> None:
        """Reads until told to stop. Kafka's errors are said on the page and tried again; any other one is raised."""
        self._publish_parts()
        while not stop.is_set():
            try:
                self._settle(self._clients.topics(self._kinds))
                if not self.pulse.missing:
                    self._follow(stop)
            except KafkaException as error:
                self.pulse.trouble = explained(error)
            stop.wait(_RETRY_S)

    def _settle(self, topics: dict[str, Topic]) -> None:
        """Begins anew where the topics are not those that were read."""
        self.pulse.answered_ms, self.pulse.trouble = _now_ms(), ""
        self.pulse.missing = tuple(name for name in self._kinds if name not in topics)
        if topics != self._topics:
            self._topics = topics
            self._next, self._begun, self._ends = {}, {}, {}
            self.state = empty_state(self.settings.page_max_rows)
            self.pulse.behind, self.pulse.share = None, 0.0
            self._publish_parts()

    def _follow(self, stop: Event) -> None:
        """Reads while the topics stay what they are."""
        admin = AdminClient(self.settings.client())
        if not self._next:
            self._ends = _offsets(admin, self._places(), OffsetSpec.latest())
            self._next = self._starts(admin)
            self._begun = dict(self._next)
        look = _Look(admin, self._places())
        compared_s = time.monotonic()
        with closing(self._clients.follower()) as consumer:
            consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])
            while not stop.is_set():
                self._take(consumer)
                self._publish_due()
                if look.age_s() < LOOK_EVERY_S:
                    continue
                found = look.result()
                if found is not None:
                    self._ends = found
                    self.pulse.answered_ms, self.pulse.trouble = _now_ms(), ""
                elif look.age_s() < _LOOK_TIMEOUT_S:
                    continue
                else:  # a client may go on asking a broker that has died
                    admin = AdminClient(self.settings.client())
                look = _Look(admin, self._places())
                self._measure()
                if found is not None and time.monotonic() - compared_s > _SAME_TOPICS_EVERY_S:
                    compared_s = time.monotonic()
                    if self._clients.topics(self._kinds) != self._topics:
                        return

    def _places(self) -> list[Place]:
        return [(name, number) for name, topic in self._topics.items() for number in range(topic.partitions)]

    def _starts(self, admin: AdminClient) -> dict[Place, int]:
        """Where to begin: what was published in the widest span before the newest record, and a little before."""
        newest_ms = max(_offsets(admin, self._places(), OffsetSpec.max_timestamp(), "timestamp").values(), default=-1)
        since_ms = max(newest_ms - SPANS[-1].width_ms - _LATE_MS, 0)
        asked = [TopicPartition(*place, since_ms) for place in self._places()]
        with closing(self._clients.follower()) as consumer:
            found = consumer.offsets_for_times(asked, timeout=self.settings.request_timeout_ms / 1000)
        starts = {}
        for place in found:
            if place.error is not None:
                raise KafkaException(place.error)
            key = (place.topic, place.partition)
            starts[key] = place.offset if place.offset >= 0 else self._ends[key]
        return starts

    def _take(self, consumer: Consumer) -> None:
        messages = consumer.consume(_MOST_RECORDS, _WAIT_S)
        for message in messages:
            self._take_one(message)
        if messages:
            self.pulse.answered_ms = _now_ms()

    def _take_one(self, message: Message) -> None:
        error, place = message.error(), (message.topic(), message.partition())
        if error is None:
            kind = self._kinds[place[0]]
            fold_record(self.state, kind, message.key(), message.value(), message.timestamp()[1])
            self._next[place] = message.offset() + 1
            self._is_new = True
        elif error.code() == KafkaError._PARTITION_EOF:
            self._next[place] = message.offset()  # past what ends a transaction, which is no record
        elif error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            raise KafkaException(error)

    def _measure(self) -> None:
        """How far behind the topics' ends this reader is."""
        behind = sum(max(end - self._next[place], 0) for place, end in self._ends.items())
        whole = sum(max(end - self._begun[place], 0) for place, end in self._ends.items())
        self.pulse.behind = behind
        self.pulse.share = 1.0 if not behind else max(self.pulse.share, 1 - behind / whole)

    def _publish_due(self) -> None:
        if self._is_new and time.monotonic() - self._published_s >= PUBLISH_EVERY_S:
            self._publish_parts()

    def _publish_parts(self) -> None:
        figures = self.state.figures
        parts: dict[str, Any] = {span.name: span_snapshot(figures, span) for span in SPANS}
        parts["news"] = news_snapshot(self.state.news, figures)
        self._publish({name: orjson.dumps(part) for name, part in parts.items()})
        self._published_s, self._is_new = time.monotonic(), False


class _Look:
    """One question for the ends of the topics, which is asked without waiting."""

    def __init__(self, admin: AdminClient, places: list[Place]) -> None:
        self._asked_s = time.monotonic()
        self._answers = _ask(admin, places, OffsetSpec.latest(), _LOOK_TIMEOUT_S)

    def age_s(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self._asked_s

    def result(self) -> dict[Place, int] | None:
        """The ends, None while one is not there; a broker's error is as no answer."""
        if not all(answer.done() and answer.exception() is None for answer in self._answers.values()):
            return None
        return {place: answer.result().offset for place, answer in self._answers.items()}


def _ask(admin: AdminClient, places: list[Place], spec: OffsetSpec, timeout_s: float) -> dict[Place, Future[Any]]:
    """Committed records only: what is behind an open transaction cannot be read yet."""
    asked = {TopicPartition(*place): spec for place in places}
    answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_s)
    return {(place.topic, place.partition): answer for place, answer in answers.items()}


def _offsets(admin: AdminClient, places: list[Place], spec: OffsetSpec, what: str = "offset") -> dict[Place, int]:
    answers = _ask(admin, places, spec, _LOOK_TIMEOUT_S)
    return {place: getattr(answer.result(_LOOK_TIMEOUT_S + 1), what) for place, answer in answers.items()}


def beat(reader: Reader, now_ms: int) -> dict[str, Any]:
    """What the page shows of the delay and of the reading itself; a few numbers, for every second."""
    pulse, figures = reader.pulse, reader.state.figures
    return {
        "now_ms": now_ms,
        "answered_ms": pulse.answered_ms,
        "is_silent": pulse.is_silent(now_ms),
        "behind": pulse.behind,
        "share": pulse.share,
        "missing": pulse.missing,
        "trouble": pulse.trouble,
        "unreadable": reader.state.unreadable,
        "window_ms": figures.window_ms,
        "newest_ms": figures.newest_ms,
        "final_ms": figures.final_ms,
        "published_ms": figures.published_ms,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
