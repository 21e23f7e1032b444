"""The refused record itself: from its dead letter, or, where that keeps only a part, from where it was found."""

import base64
import hashlib
import time
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from app.contract.rows import KEPT_KEY_BYTES, DeadLetter
from app.engine.clients import reader_properties
from app.formats.cloudevents import is_of_event
from app.settings import Settings

_GONE: Final = (
    KafkaError._PARTITION_EOF,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


class Original(NamedTuple):
    """A record's key and value as they were, and its headers, if they are part of the event."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class RawLog:
    """Fetches single records of raw topics by their coordinates."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_s = settings.request_timeout_ms / 1000
        # one record at a time: what lies behind it is not fetched ahead
        ahead = {"queued.min.messages": 1, "fetch.message.max.bytes": 1024, "auto.offset.reset": "error"}
        self._properties = reader_properties(settings) | ahead
        self._consumer: Any = None

    def original(self, letter: DeadLetter) -> Original | None:
        """The whole refused record; None where the raw log no longer has it. Raises KafkaException."""
        kept = kept_part(letter)
        if not letter.truncated and len(kept.key or b"") < KEPT_KEY_BYTES:
            return kept
        message = self._fetch(letter)
        if message is None or hashlib.sha256(message.value() or b"").hexdigest() != letter.sha256:
            return None
        headers = tuple(header for header in message.headers() or () if is_of_event(header[0]))
        return Original(message.key(), message.value(), headers)

    def _fetch(self, letter: DeadLetter) -> Any:
        if self._consumer is None:
            self._consumer = Consumer(self._properties)
        self._consumer.assign([TopicPartition(letter.topic, letter.partition, letter.offset)])
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s:
            message = self._consumer.poll(0.5)
            if message is None:
                continue
            if message.error() is None:
                return message if message.offset() == letter.offset else None
            if message.error().code() in _GONE:
                return None
            raise KafkaException(message.error())
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{letter.topic}/{letter.partition} did not answer"))

    def close(self) -> None:
        """Ends the connection."""
        if self._consumer is not None:
            self._consumer.close()


def kept_part(letter: DeadLetter) -> Original:
    """As much of the record as its letter keeps."""
    key = None if letter.key_base64 is None else base64.b64decode(letter.key_base64)
    value = None if letter.value_base64 is None else base64.b64decode(letter.value_base64)
    return Original(key, value, tuple((name, base64.b64decode(said)) for name, said in letter.headers_base64.items()))
