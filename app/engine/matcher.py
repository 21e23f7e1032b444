"""The matcher's fold: events that name a click id and no user find the user of that click, or wait for it.

It reads `onecount.clicks`, where a counter tells whose click is whose and hands over the events without a user. An event that
found its user goes to `onecount.rekeyed` on the partition of that user's owner, as any event that was found elsewhere.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Final

import msgspec
import numpy as np

from app.columns.texts import texts_of
from app.contract import click_ids, reasons
from app.contract.click_ids import UserlessRow
from app.contract.events import Rejection
from app.engine.fold import Batch, Fold, Published, Record, Run
from app.engine.state import StateRefused, check_version, unreadable
from app.intake.partitioner import owners
from app.matching.book import Book, Fate, Step, digest_of
from app.policy.model import Policy
from app.publish import records
from app.settings import Settings

VIEW_VERSION: Final = (
    2  # of all that a matcher keeps in Redis; one more with every change that an older release would misread
)


class View(msgspec.Struct, array_like=True):
    """What is stored in the ledger beside the offsets: the stream time (epoch ms), and how many records there are of each
    generation of click ids and of each day until which events wait.
    """

    version: int
    stream_ms: int
    generations: dict[int, int]
    days: dict[int, int]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(View).decode


class MatcherStage:
    """Finds the users of events by their click ids: the fold of `onecount.clicks` into re-keyed events and dead letters."""

    rebuilds_from_log = True
    span_ms = inf  # it has one topic

    def __init__(self, settings: Settings, policy: Policy, partitions: int) -> None:
        assert policy.bounds.click_ids is not None
        self.settings = settings
        self.tag = settings.tag("m")
        self.bounds = policy.bounds
        self.click_ids = policy.bounds.click_ids
        self.partitions = partitions  # of users
        self.rebuild_ms = policy.click_log_ms()
        self.idle_timeout_ms = policy.bounds.idle_timeout_ms
        self.newest_ms = 0
        self.opened: dict[int, Book] = {}

    def open(self, partition: int, view: bytes | None, run: Run) -> None:
        """Takes a partition over. Raises `StateRefused`, and `StateOutdated` or `StateDamaged` for state that is to be rebuilt."""
        book = Book(f"{self.tag}{partition}", self.click_ids)
        if view is not None:
            check_version(view, VIEW_VERSION, book.tag)
            try:
                found = _unpack(view)
            except msgspec.DecodeError as error:
                raise unreadable(book.tag, error) from error
            book.stream_ms = found.stream_ms
            book.load(found.generations, found.days, run)
        self.opened[partition] = book

    def close(self, partition: int) -> None:
        """Forgets a partition's in-memory view."""
        self.opened.pop(partition, None)

    def fold(self, batches: dict[int, Batch], suppressed: set[int], run: Run) -> Fold:
        """Takes the rows of each partition in, in their order. Two round trips to Redis at most."""
        fold = Fold()
        stamps = [
            record.timestamp()[1]
            for partition, batch in batches.items()
            if partition not in suppressed
            for record in batch.records
        ]
        fold.stamps_ms = np.array(stamps, dtype=np.int64)
        steps = {partition: [_step(record) for record in batch.records] for partition, batch in batches.items()}
        questions = {partition: self.opened[partition].question(steps[partition]) for partition in batches}
        replies = iter(run([command for question in questions.values() for command in question]))
        for partition, question in questions.items():
            book = self.opened[partition]
            fates = book.settle(steps[partition], [next(replies) for _ in question])
            rows = book.read(fates, run)
            self._count(fates, fold)
            if partition not in suppressed:
                self._publish(partition, fates, rows, fold)
            fold.writes[partition] = book.writes(fates)
            fold.views[partition] = self._view(book)
        return fold

    def _count(self, fates: list[Fate], fold: Fold) -> None:
        lost = sum(fate.user_id is None for fate in fates)
        fold.counted["rejected", reasons.CLICK_NOT_FOUND] += lost
        fold.counted["matched",] += len(fates) - lost

    def _publish(self, partition: int, fates: list[Fate], rows: list[UserlessRow], fold: Fold) -> None:
        users = [(fate.user_id or "").encode() for fate in fates]
        found = owners(texts_of(users), self.partitions, self.bounds.partitioner).tolist()
        for fate, row, user, owner in zip(fates, rows, users, found, strict=True):
            if fate.user_id is None:
                rejection = Rejection(
                    reasons.CLICK_NOT_FOUND, "click_id", "no click with this id came within park_for of event_time"
                )
                letter = records.dead_letter_of(row.source, row.key, row.value.encode(), rejection)
                records.add(fold.outputs, self.settings.dlq_topic, row.partition, letter)
            else:
                copy = records.matched(row.source, user, click_ids.with_user(row.value, fate.user_id), partition)
                records.add(fold.outputs, self.settings.rekeyed_topic, owner, copy)

    def _view(self, book: Book) -> bytes:
        return _pack(View(VIEW_VERSION, book.stream_ms, dict(book.generations), dict(book.days)))

    def published_since_ms(self, partition: int, begins_ms: int, before: Iterator[list[Record]], run: Run) -> int:
        """What a matcher published says nothing that its log does not."""
        return 0

    def reconcile(
        self, partition: int, begins_ms: int, published: Iterator[Published], since_ms: int, run: Run
    ) -> Iterator[Fold]:
        """There is nothing to correct: no row of a matcher changes later."""
        yield Fold(views={partition: self._view(self.opened[partition])})

    def slowest_stream_ms(self) -> int:
        """The smallest stream time (epoch ms) of the open partitions that have one."""
        return min((book.stream_ms for book in self.opened.values() if book.stream_ms), default=0)

    def held(self) -> dict[str, int]:
        """How many click ids are known, and how many events wait."""
        books = self.opened.values()
        return {
            "click_ids": sum(book.generations.total() for book in books),
            "waiting": sum(len(book.waiting) for book in books),
        }

    def idle(self, partitions: Iterable[int], now_ms: int) -> Fold:
        """A matcher has nothing to say on its own: what waits does so in stream time."""
        return Fold()


def _step(record: Record) -> Step:
    """A row as it is taken in. Raises `StateRefused` for what is none."""
    value = record.value() or b""
    try:
        return Step(record.offset(), digest_of(record.key() or b""), click_ids.decode(value), value)
    except msgspec.DecodeError as error:
        raise StateRefused(
            f"{record.topic()}/{record.partition()} at offset {record.offset()} is unreadable ({error}): if counters of a newer release "
            "wrote it, deploy that release's matchers; else run `onecount reset`"
        ) from error
