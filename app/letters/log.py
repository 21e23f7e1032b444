"""The dead letters as they lie in Kafka, and which of them an operator means."""

import re
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

import msgspec
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from app.contract.rows import DeadLetter, decode_dead_letter
from app.engine.clients import Clients
from app.letters.refusal import LettersError
from app.policy.load import PolicyError, duration_ms
from app.settings import Settings

ERRORS_ONLY: Final = (
    3  # of what librdkafka has to say on stderr; elections and retries are no news to who waits for them
)
_FETCH_RECORDS: Final = 1_000
_FETCH_S: Final = 0.1
_RETRY_S: Final = 0.2
_PASSING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.OFFSET_NOT_AVAILABLE,  # a new leader does not know yet how far its partition is committed
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
)
_SILENCE_S: Final = 60.0  # without a record that is due: nobody answers
_SOURCE: Final = re.compile(r"([A-Za-z0-9._-]{1,249})(?::(\d{1,9})(?::(\d{1,19}))?)?")


Spans: TypeAlias = dict[int, tuple[int, int]]


class Source(NamedTuple):
    """Where refused events lie: a raw topic, one of its partitions, or one record."""

    topic: str
    partition: int | None = None
    offset: int | None = None


class Letter(NamedTuple):
    """One dead letter. `refused_ms`: when it was written (epoch ms, the broker's clock)."""

    content: DeadLetter
    refused_ms: int

    @property
    def coordinates(self) -> str:
        """Where the refused record lies, as `--source` and `show` take it."""
        return f"{self.content.topic}:{self.content.partition}:{self.content.offset}"


class Selection(NamedTuple):
    """Which letters are meant; what is None or empty leaves all. Times are of the refusal (epoch ms), `until_ms` exclusive."""

    reasons: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    source: Source | None = None

    def takes(self, letter: Letter) -> bool:
        """Whether the letter is one of them."""
        content, source = letter.content, self.source
        return (
            (not self.reasons or content.reason in self.reasons)
            and (self.since_ms is None or letter.refused_ms >= self.since_ms)
            and (self.until_ms is None or letter.refused_ms < self.until_ms)
            and (
                source is None
                or (
                    content.topic == source.topic
                    and source.partition in (None, content.partition)
                    and source.offset in (None, content.offset)
                )
            )
        )


def parse_source(text: str) -> Source:
    """`topic`, `topic:partition` or `topic:partition:offset`. Raises `LettersError`."""
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise LettersError(f"{text!r} names no record: write topic, topic:partition or topic:partition:offset")
    topic, partition, offset = match.groups()
    return Source(topic, None if partition is None else int(partition), None if offset is None else int(offset))


def parse_moment(text: str, now_ms: int) -> int:
    """Epoch milliseconds of a duration before now (`90s`, `30m`, `2h`, `7d`) or of an ISO time; one without a zone is UTC.

    Raises `LettersError`.
    """
    try:
        return now_ms - duration_ms(text)
    except PolicyError:
        pass
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise LettersError(f"{text!r} is no time: write 30m, 2h, 7d or an ISO time such as 2026-03-01T14:00Z") from None


def committed_spans(settings: Settings, topic: str, since_ms: int | None = None) -> Spans:
    """The offsets [first, end) of each partition that holds records, those since then; the end is the last stable offset, so
    that what an open transaction wrote is not waited for.

    Raises `LettersError` where the topic is missing, KafkaException where the brokers do not answer.
    """
    deadline_s = time.monotonic() + settings.request_timeout_ms / 1000
    while True:
        try:
            return _ask_spans(settings, topic, since_ms)
        except KafkaException as error:
            # an election, or a topic that was made a moment ago
            if not error.args[0].retriable() and error.args[0].code() not in _PASSING:
                raise
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_RETRY_S)


def _ask_spans(settings: Settings, topic: str, since_ms: int | None) -> Spans:
    timeout_s = settings.request_timeout_ms / 1000
    admin = AdminClient(settings.client(log_level=ERRORS_ONLY))
    known = admin.list_topics(topic, timeout=timeout_s).topics[topic]
    if known.error is not None and known.error.code() in _PASSING:
        raise KafkaException(known.error)
    if known.error is not None or not known.partitions:
        why = known.error.str() if known.error is not None else "it has no partitions"
        raise LettersError(
            f"the topic {topic} cannot be read ({why}): run `onecount topics create`, or give the right to it"
        )
    places = [TopicPartition(topic, number) for number in known.partitions]
    begin = OffsetSpec.earliest() if since_ms is None else OffsetSpec.for_timestamp(max(since_ms, 0))
    firsts = admin.list_offsets(dict.fromkeys(places, begin), request_timeout=timeout_s)
    ends = admin.list_offsets(
        dict.fromkeys(places, OffsetSpec.latest()),
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=timeout_s,
    )
    # a partition without a record since then has the offset -1
    spans = {place.partition: (firsts[place].result().offset, ends[place].result().offset) for place in places}
    return {number: (first, end) for number, (first, end) in spans.items() if 0 <= first < end}


def read_committed(clients: Clients, topic: str, spans: Spans) -> Iterator[Message]:
    """Every committed record of the spans, each partition in its order. Raises `LettersError` if none comes for a minute
    though some are due.
    """
    unread = {number: end for number, (_, end) in spans.items()}
    if not unread:
        return
    with closing(clients.reader()) as consumer:
        consumer.assign([TopicPartition(topic, number, spans[number][0]) for number in unread])
        heard_s = time.monotonic()
        while unread:
            for message in consumer.consume(_FETCH_RECORDS, _FETCH_S):
                error, number = message.error(), message.partition()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise LettersError(f"{topic}/{number} cannot be read: {error.str()}")
                end = unread.get(number, 0)  # 0: what still comes of a partition that is done
                if error is None and message.offset() < end:
                    yield message
                    heard_s = time.monotonic()
                # the end may lie behind control records, which are not delivered: then the partition's EOF tells
                if message.offset() + (error is None) >= end and unread.pop(number, None) is not None:
                    consumer.pause([TopicPartition(topic, number)])
            if time.monotonic() - heard_s > _SILENCE_S:
                raise LettersError(f"{topic}: no record came for {_SILENCE_S:.0f} s; unread: {sorted(unread)}")


class LetterLog:
    """The dead-letter topic up to its end at the moment at which this is made; may be read several times.

    `unreadable`: how many records of the last reading were no dead letters. Raises as `committed_spans` and `read_committed`.
    """

    def __init__(self, settings: Settings, clients: Clients, since_ms: int | None = None) -> None:
        self.topic = settings.dlq_topic
        self.clients = clients
        self.unreadable = 0
        self.spans = committed_spans(settings, self.topic, since_ms)

    def read(self) -> Iterator[Letter]:
        """Every letter, each partition in its order."""
        self.unreadable = 0
        for message in read_committed(self.clients, self.topic, self.spans):
            try:
                content = decode_dead_letter(message.value() or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.unreadable += 1
                continue
            yield Letter(content, message.timestamp()[1])
