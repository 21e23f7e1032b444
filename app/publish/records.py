"""Records as they are produced: plain dicts of `produce_batch`, by topic, and the coordinates of consumed ones."""

from collections.abc import Iterable
from typing import Any, Final, Protocol

from app.contract import rows
from app.contract.events import Rejection
from app.formats.cloudevents import is_of_event

SOURCE_HEADER: Final = "onecount-source"  # topic/partition/offset where a re-keyed event was found
MATCHED_HEADER: Final = "onecount-matched"  # the partition of the clicks whose matcher has found the event's user


class Consumed(Protocol):
    """The part of a consumed record that is read here."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> list[tuple[str, bytes]] | None: ...


Outputs = dict[
    tuple[str, int], list[dict[str, Any]]
]  # by topic and partition: produce_batch takes one partition a call


def add(outputs: Outputs, topic: str, partition: int, record: dict[str, Any]) -> None:
    """Puts a record to publish under its topic and partition."""
    outputs.setdefault((topic, partition), []).append(record)


def source_of(message: Consumed) -> tuple[str, int, int, int]:
    """A record's first coordinates (topic, partition, offset) and its timestamp (ms): where a re-keyed event was
    found, not its copy.
    """
    timestamp_ms = message.timestamp()[1]
    for name, value in message.headers() or ():
        if name == SOURCE_HEADER:
            topic, partition, offset = value.decode().rsplit("/", 2)
            return topic, int(partition), int(offset), timestamp_ms
    return message.topic(), message.partition(), message.offset(), timestamp_ms


def dead_letter(message: Consumed, rejection: Rejection) -> dict[str, Any]:
    """The dead letter of a refused record."""
    of_event = [header for header in message.headers() or () if is_of_event(header[0])]
    return dead_letter_of(source_of(message), message.key(), message.value(), rejection, of_event)


def dead_letter_of(
    source: tuple[str, int, int, int],
    key: bytes | None,
    value: bytes | None,
    rejection: Rejection,
    headers: Iterable[tuple[str, bytes | None]] = (),
) -> dict[str, Any]:
    """As `dead_letter`, of a record that was consumed earlier."""
    letter = rows.dead_letter(rejection, *source, key, value, headers)
    return {"value": rows.encode(letter), "key": key[: rows.KEPT_KEY_BYTES] if key is not None else None}


def rekeyed(message: Consumed, key: bytes) -> dict[str, Any]:
    """A copy of an event for the partition of its owner; keeps the record's time, by which its age is judged."""
    own = [header for header in message.headers() or () if header[0] != SOURCE_HEADER]  # they may be part of the event
    source = message.topic(), message.partition(), message.offset(), message.timestamp()[1]
    record = copy_of(source, key, message.value())
    record["headers"] += own
    return record


def matched(source: tuple[str, int, int, int], key: bytes, value: bytes, matcher: int) -> dict[str, Any]:
    """As `rekeyed`, of an event by its first coordinates and timestamp (ms); `matcher`: the partition of the clicks."""
    record = copy_of(source, key, value)
    record["headers"].append((MATCHED_HEADER, str(matcher).encode()))
    return record


def matched_by(message: Consumed) -> int | None:
    """The partition of the clicks whose matcher wrote a re-keyed event; None if a counter did."""
    return next((int(value) for name, value in message.headers() or () if name == MATCHED_HEADER), None)


def copy_of(source: tuple[str, int, int, int], key: bytes, value: bytes | None) -> dict[str, Any]:
    """As `rekeyed`, of an event by its first coordinates and timestamp (ms)."""
    topic, partition, offset, timestamp_ms = source
    header = f"{topic}/{partition}/{offset}".encode()
    return {"value": value, "key": key, "timestamp": timestamp_ms, "headers": [(SOURCE_HEADER, header)]}
