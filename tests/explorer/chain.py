"""The smallest fold that forgives nothing: it writes down what it has counted, letter by letter, and publishes that.

A record's value is a letter. Its row, `a`, says what had been counted when it was: the history `ba`; the row `total` has the
latest history, and a revision which every batch raises. So a record that is lost, counted twice or counted in another order
shows in the histories, and a batch that is cut otherwise than it was shows in the revisions.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Final, NamedTuple

from app.engine.fold import Batch, Fold, Published, Record, Run
from tests.upserts import latest

TOTAL: Final = b"total"
TAG: Final = "x"


class Row(NamedTuple):
    """A published and stored row."""

    history: str
    revision: int


Rows = dict[bytes, Row]


def encode(row: Row) -> bytes:
    """A row as it is stored and published."""
    return f"{row.history}|{row.revision}".encode()


def decode(value: bytes) -> Row:
    """The row of a value."""
    history, _, revision = value.decode().partition("|")
    return Row(history, int(revision))


def rows_key(partition: int) -> str:
    """The Redis key of a partition's rows."""
    return f"{{{TAG}{partition}}}:rows"


class ChainStage:
    """A `Stage` of the engine. As in the real ones, a part of what it needs is in its view, in memory, and a part in Redis."""

    tag = TAG
    rebuilds_from_log = True
    rebuild_ms = 0
    span_ms = inf
    idle_timeout_ms = 1 << 60
    newest_ms = 0

    def __init__(self, published_topic: str) -> None:
        self.topic = published_topic
        self.histories: dict[int, str] = {}
        self.folding: tuple[object, ...] = ()  # what this turn carries, as a part of the explored state

    def open(self, partition: int, view: bytes | None, run: Run) -> None:
        """Takes a partition over."""
        self.histories[partition] = (view or b"").decode()

    def close(self, partition: int) -> None:
        """Forgets a partition."""
        self.histories.pop(partition, None)

    def fold(self, batches: dict[int, Batch], suppressed: set[int], run: Run) -> Fold:
        """A row for each letter, and the total."""
        fold = Fold()
        for partition, batch in batches.items():
            letters = [(record.value() or b"") for record in batch.records]
            found = run([("HMGET", rows_key(partition), TOTAL, *letters)])[0]
            total, *olds = [decode(value) if value else Row("", 0) for value in found]
            assert letters, "an empty batch would still raise the total's revision"
            history, rows = self.histories[partition], {}
            for letter, old in zip(letters, olds, strict=True):
                history += letter.decode()
                rows[letter] = Row(history, old.revision + 1)
            rows[TOTAL] = Row(history, total.revision + 1)
            self._effect(fold, partition, rows, {} if partition in suppressed else rows)
        self.folding = (*self.folding, *((number, tuple(batch.ranges.items())) for number, batch in batches.items()))
        return fold

    def published_since_ms(self, partition: int, begins_ms: int, before: Iterator[list[Record]], run: Run) -> int:
        """Every row may change."""
        return 0

    def reconcile(
        self, partition: int, begins_ms: int, published: Iterator[Published], since_ms: int, run: Run
    ) -> Iterator[Fold]:
        """What was published keeps its revision where the rebuilt row is the same; the others are corrected."""
        fold = Fold()
        pairs = run([("HGETALL", rows_key(partition))])[0]
        rebuilt = {key: decode(value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
        told = {key: decode(value) for key, value in latest(published).items()}
        assert told.keys() <= rebuilt.keys(), f"published, but not counted again: {told.keys() - rebuilt.keys()}"
        changed: Rows = {}
        for key, row in rebuilt.items():
            old = told.get(key, Row("", 0))
            changed[key] = old if row.history == old.history else Row(row.history, old.revision + 1)
        self._effect(fold, partition, changed, {key: row for key, row in changed.items() if row != told.get(key)})
        if len(changed) > 1:  # a first part of the state goes before the rest and what is published
            yield Fold(writes=fold.writes)
        yield fold

    def _effect(self, fold: Fold, partition: int, rows: Rows, published: Rows) -> None:
        if rows:
            self.histories[partition] = rows[TOTAL].history
            fold.writes[partition] = [
                ("HSET", rows_key(partition), *(part for key, row in rows.items() for part in (key, encode(row))))
            ]
        if published:
            fold.outputs[self.topic, partition] = [{"key": key, "value": encode(row)} for key, row in published.items()]
        fold.views[partition] = self.histories[partition].encode()
        self.folding = (*self.folding, partition, tuple(rows.items()), tuple(published))

    def slowest_stream_ms(self) -> int:
        """There is no stream time here."""
        return 0

    def idle(self, partitions: Iterable[int], now_ms: int) -> Fold:
        """Nothing to say when idle."""
        return Fold()
