"""What a desk fold is: plain data in, rows out; it knows no Kafka and no Faust.

Faust cannot hold exact counts through crashes by itself (0.15 commits offsets without group metadata, and loses what a
rebalance interrupts). So a desk fold is an idempotent fold of upserts: taking any record again, or all of them from the
start, changes nothing, and what it must have published follows from what its input topics hold.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Input(NamedTuple):
    """One record of an input topic. Of one key the largest offset holds; `value` None deletes."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Output(NamedTuple):
    """One row to publish, an upsert; `value` None deletes it."""

    topic: str
    key: bytes
    value: bytes | None


class DeskFold(Protocol):
    """One question that the desk answers."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        """How many records broke their contract, by topic and reason."""

    def take(self, record: Input) -> None:
        """Takes one record into account. Idempotent. Input that breaks its contract is counted in
        `refused`, and where others wrote it, named in a row of its own; it is never raised."""

    def rows(self, now_ms: int) -> Iterable[Output]:
        """The rows that differ from those given out before; at a new start all of them. Asked for only once the inputs are read
        to their ends. What is published and not among those of a new start is deleted, unless it `lasts`.
        """

    def lasts(self, topic: str, key: bytes) -> bool:
        """Whether a row of the outputs stays once published, though `rows` gives it no more."""
