"""What a stage is to the engine: a fold over batches of records. Data only; the loop is in loop.py."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from app.publish.records import Consumed as Record
from app.publish.records import Outputs

Command = tuple[Any, ...]
Run = Callable[[Iterable[Command]], list[Any]]
Published = tuple[bytes, bytes | None]  # a row's key and value; None where it was deleted


class Batch(NamedTuple):
    """One partition's records to fold, in order of (topic, offset), and the half-open offset range that they take of each topic."""

    records: list[Record]
    ranges: dict[str, tuple[int, int]]


@dataclass
class Fold:
    """The effects of one batch: records to publish, Redis commands and the partition's view by partition, and what was
    counted.

    A record to publish is a dict of `produce_batch`: value and key, and for re-keyed ones timestamp and headers.
    `views`: the small state that the stage wants back when a partition is opened; it is stored in the ledger.
    `stamps_ms`: the Kafka timestamps of the records whose effects are published. `converted`: platform, action and time to
    convert (ms) of the conversions that are counted for the first time.
    """

    outputs: Outputs = field(default_factory=dict)
    writes: dict[int, list[Command]] = field(default_factory=dict)
    views: dict[int, bytes] = field(default_factory=dict)
    counted: Counter[tuple[str, ...]] = field(default_factory=Counter)
    converted: list[tuple[str, str, int]] = field(default_factory=list)
    stamps_ms: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class Stage(Protocol):
    """A fold with its in-memory view of the partitions it has open. Everything in that view can be read back from
    Redis.
    """

    tag: str  # the first part of its Redis hash tags
    rebuilds_from_log: bool  # whether lost state is folded anew from the input, or read back from the output
    rebuild_ms: int  # how far back (ms) a rebuild reads the input
    span_ms: float  # the longest time (ms) that a batch of several topics may span
    idle_timeout_ms: int
    newest_ms: int  # Kafka timestamp of the newest event of its last batch; 0: the next one is not to wait for more

    def open(self, partition: int, view: bytes | None, run: Run) -> None:
        """Takes a partition over, from the view stored with its last batch (None: it is new)."""

    def close(self, partition: int) -> None:
        """Forgets a partition's in-memory view."""

    def fold(self, batches: dict[int, Batch], suppressed: set[int], run: Run) -> Fold:
        """Folds each partition's records, in order; what `suppressed` partitions would publish is left out, since it
        is published already.
        """

    def published_since_ms(self, partition: int, begins_ms: int, before: Iterator[list[Record]], run: Run) -> int:
        """After a rebuild: the time (epoch ms) of the oldest row that is needed; 0 where nobody knows. `begins_ms`: the Kafka
        timestamp of the oldest record that the input still holds, 0 where it is whole. `before`: the input's records up to the
        state's offset in stretches, the newest first, read only as far as they are asked for.
        """

    def reconcile(
        self, partition: int, begins_ms: int, published: Iterator[Published], since_ms: int, run: Run
    ) -> Iterator[Fold]:
        """After a rebuild: takes over what the input no longer tells (`begins_ms`, as above), then the corrections that make
        what is published equal to the state. At least one part; the last one may have outputs.
        """

    def slowest_stream_ms(self) -> int:
        """The smallest stream time (epoch ms) of the open partitions; 0 or less where there is none."""

    def held(self) -> dict[str, int]:
        """How many records the open partitions have in each kind of table; empty where a stage has none."""

    def idle(self, partitions: Iterable[int], now_ms: int) -> Fold:
        """What to publish for partitions that have had no record for the idle timeout."""
