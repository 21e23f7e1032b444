"""One partition that a worker owns: how far it was read, what waits to be folded, and what makes a batch."""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from math import inf
from typing import Any, Final, NamedTuple

from confluent_kafka import Message

from app.engine.fold import Batch, Record
from app.engine.ledger import Mode

Ranges = dict[str, tuple[int, int]]  # half-open offset ranges by topic
COURSE_RECORDS: Final = 50_000  # of a batch that is folded in its course, at least one batch as it was


class Run(NamedTuple):
    """Records of one topic-partition that were consumed in one go, in order of their offsets."""

    records: Sequence[Record]
    first: int
    last: int


def in_runs(messages: Sequence[Message]) -> Iterator[tuple[str, int, bool, Sequence[Message]]]:
    """What follows each other of one topic and partition, errors apart from records: topic, partition, whether errors, messages.

    Most lists are of one topic and without an error, which is seen from a list as a whole.
    """
    topics = [message.topic() for message in messages]
    partitions = [message.partition() for message in messages]
    errors = [message.error() for message in messages]
    places: Iterable[Any] = partitions
    if any(errors) or topics.count(topics[0] if topics else "") < len(topics):
        places = zip(topics, partitions, [error is not None for error in errors], strict=True)
    first = 0
    for _, run in groupby(places):
        behind = first + len(list(run))
        yield topics[first], partitions[first], errors[first] is not None, messages[first:behind]
        first = behind


class Owned:
    """The offsets of an owned partition, by topic, and its consumed records that are not folded yet."""

    def __init__(
        self, epoch: int, mode: Mode, offsets: dict[str, int], committed: dict[str, int | None], span_ms: float = inf
    ) -> None:
        self.opened_at = time.monotonic()
        self.epoch = epoch
        self.span_ms = span_ms  # the longest time that a batch of several topics may span
        self.mode = self.opened_as = mode
        self.next = offsets  # M: the first offset of each topic that is not in the state
        self.read = dict(offsets)  # the first offset of each topic that was not consumed yet
        self.read_ms: dict[str, int] = {}  # the time of the last record of each topic that was
        self.committed = committed  # C, as it was when the partition was opened
        self.pending: dict[str, list[Run]] = {}
        self.at_end: set[str] = set()
        self.course: Iterator[Ranges] | None = (
            None  # of a rebuild: the batches that its records were folded in at first
        )
        self._told: Ranges | None = None  # the next one of them
        self.paused: set[str] = set()  # topics that are far ahead of another one, and not fetched meanwhile
        self.is_confirmed = False  # whether the group's coordinator has said C again
        self.is_proven = False  # whether its offsets and its log were found to fit each other
        self.first: dict[str, int] = {}  # the first offset that each topic's log held when the partition was opened
        self.by_hand: set[str] = set()  # the topics whose offset in the group no worker has committed
        self.written = 0  # how many writes of its state there were
        self.discarded: Exception | None = (
            None  # why the state that was found is rebuilt: StateOutdated or StateDamaged
        )

    def add(self, topic: str, records: list[Record]) -> None:
        """Takes consumed records of one topic in, in order. What was fetched before the partition was set back is dropped."""
        start = self.read[topic]
        if records[0].offset() < start:
            records = [record for record in records if record.offset() >= start]
            if not records:
                return
        run = Run(records, records[0].offset(), records[-1].offset())
        self.read[topic] = run.last + 1
        self.read_ms[topic] = _time_ms(records[-1])
        self.at_end.discard(topic)
        self.pending.setdefault(topic, []).append(run)

    def behind(self, topic: str) -> bool:
        """Whether records of this topic that are published already are still to be read."""
        reached = self.committed.get(topic)
        return reached is not None and self.read[topic] < reached

    def take(self) -> Batch | None:
        """The records to fold now, by topic and offset. Those of a replay come all at once, cut exactly at C, since their
        batch was one; others come in step with the other topics' (see `_in_step`).
        """
        if not self.pending or (self.mode is Mode.REPLAY and any(self.behind(topic) for topic in self.read)):
            return None
        if self.mode is Mode.REBUILD and self.course is not None:
            if self.waits():
                return None  # it is not known yet where the course goes on
            batch = self._in_course()
            if batch.records:
                return batch
            if self.course is not None:
                return None
        runs, self.pending = (self.pending, {}) if self.mode is Mode.REPLAY else self._in_step()
        if self.mode is not Mode.LIVE:
            for topic in list(runs):
                runs[topic], rest = _cut(runs[topic], self.committed.get(topic) or 0)
                self._put_back(topic, rest)
        batch = Batch([], {})
        for topic in sorted(runs):
            _add(batch, topic, runs[topic])
        return batch if batch.records else None

    def next_ms(self) -> int:
        """The time (epoch ms) of the oldest record that comes next in a topic."""
        return min(_time_ms(runs[0].records[0]) for runs in self.pending.values() if runs)

    def _in_course(self) -> Batch:
        """The pending records as they were folded at first; nothing where the next batch has not all come yet. Ends the course
        behind its last batch.
        """
        batch = Batch([], {})
        while len(batch.records) < COURSE_RECORDS:
            self._told = self._told or next(self.course, None)  # type: ignore[arg-type]
            if self._told is None:
                self.course = None
                break
            if self._goes_before(self._told):
                if not batch.records:
                    self._take_before(self._told, batch)
                break
            if not self._take_told(self._told, batch):
                break
            self._told = None
        return batch

    def _take_told(self, told: Ranges, batch: Batch) -> bool:
        """Takes what has come of a batch, in its order; whether that is all of it."""
        for topic in sorted(told.keys() & self.read.keys()):
            end = told[topic][1]
            is_all = self.read[topic] >= end or topic in self.at_end
            if not is_all and topic not in self.paused:
                return False
            runs, rest = _cut(self.pending.pop(topic, []), end)
            self._put_back(topic, rest)
            _add(batch, topic, runs)
            if not is_all:  # the rest is fetched once these are folded
                return False
        return True

    def _goes_before(self, told: Ranges) -> bool:
        """Whether records are pending that were folded before a batch, which is the first one that the deltas still hold."""
        return any(topic in told and runs and runs[0].first < told[topic][0] for topic, runs in self.pending.items())

    def _take_before(self, told: Ranges, batch: Batch) -> None:
        """Of these nobody knows the order: they come in step."""
        runs, self.pending = self._in_step()
        for topic in sorted(runs):
            before, rest = _cut(runs[topic], told[topic][0]) if topic in told else (runs[topic], [])
            self._put_back(topic, rest)
            _add(batch, topic, before)
        if not batch.records:  # whatever else waits was folded later than these
            for topic in sorted(told.keys() & self.pending.keys()):
                before, rest = _cut(self.pending.pop(topic), told[topic][0])
                self._put_back(topic, rest)
                _add(batch, topic, before)

    def _put_back(self, topic: str, runs: list[Run]) -> None:
        if runs:
            self.pending[topic] = runs + self.pending.get(topic, [])

    def _in_step(self) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
        """The pending runs that may be folded now, and those that wait, by the records' times.

        No topic may move the stream time far beyond what another one still has to say: all of that would be too late. It
        happens where one topic is read faster than another, as the few re-keyed events of weeks are in a rebuild.
        """
        if self.waits_for_nobody():
            return self.pending, {}
        if self.waits():
            return {}, self.pending
        reached = {topic: max(map(_time_ms, runs[-1].records)) for topic, runs in self.pending.items()}
        unfinished = self.pending.keys() - self.at_end
        slowest = min(unfinished, key=reached.__getitem__, default=None)
        limit_ms = inf if slowest is None else reached[slowest]
        first_ms = min(_time_ms(runs[0].records[0]) for runs in self.pending.values())
        now, later = {}, {}
        for topic, runs in self.pending.items():
            own_ms = first_ms + self.span_ms if topic == slowest else min(limit_ms, first_ms + self.span_ms)
            now[topic], rest = _until(runs, own_ms)
            if rest:
                later[topic] = rest
        return now, later

    def waits(self) -> bool:
        """Whether nothing can be taken yet, since a topic's next record is not known."""
        return bool(self.pending and self.read.keys() - self.at_end - self.pending.keys())

    def waits_for_nobody(self) -> bool:
        """Whether one topic at most has anything to say."""
        return len(self.pending.keys() | (self.read.keys() - self.at_end)) <= 1

    def hold_back(self, most: int) -> tuple[set[str], set[str]]:
        """The topics that need not be fetched from now on, since more than `most` records of each wait for another topic, and those
        that are to be fetched again.
        """
        ahead: set[str] = set()
        # A replay is one batch, and taken whole. And where no topic waits for another all is folded next: what a paused one has
        # fetched would be fetched again.
        if self.mode is not Mode.REPLAY and not (self.mode is Mode.LIVE and self.waits_for_nobody()):
            ahead = {topic for topic in self.pending.keys() - self.paused if self.held(topic) > most}
        # Whatever it waits for: nobody else fetches it again, and no other topic may ever have a word to say.
        reached = {topic for topic in self.paused if self.held(topic) <= most // 2}
        self.paused = (self.paused | ahead) - reached
        return ahead, reached

    def held(self, topic: str) -> int:
        """How many consumed records of a topic wait."""
        return sum(len(run.records) for run in self.pending.get(topic, ()))

    def oldest_ms(self, topic: str) -> int | None:
        """The time (epoch ms) of a topic's first record that waits, or of the last one before it; None while none was consumed."""
        runs = self.pending.get(topic)
        return _time_ms(runs[0].records[0]) if runs else self.read_ms.get(topic)

    def is_caught_up(self) -> bool:
        """Whether everything that is published is in the state again."""
        return all(not self.behind(topic) for topic in self.read) and all(
            offset >= (self.committed.get(topic) or 0) for topic, offset in self.next.items()
        )


def _add(batch: Batch, topic: str, runs: list[Run]) -> None:
    if runs:
        first = batch.ranges[topic][0] if topic in batch.ranges else runs[0].first
        batch.ranges[topic] = (first, runs[-1].last + 1)
        for run in runs:
            batch.records.extend(run.records)


def _time_ms(record: Record) -> int:
    return record.timestamp()[1]


def _until(runs: list[Run], limit_ms: float) -> tuple[list[Run], list[Run]]:
    """Splits runs before the first record that is later than `limit_ms`."""
    if limit_ms == inf:
        return runs, []
    for record in chain.from_iterable(run.records for run in runs):
        if _time_ms(record) > limit_ms:
            return _cut(runs, record.offset())
    return runs, []


def _cut(runs: list[Run], offset: int) -> tuple[list[Run], list[Run]]:
    """Splits runs into what lies before `offset` and what does not."""
    before, after = [], []
    for run in runs:
        if run.last < offset:
            before.append(run)
        elif run.first >= offset:
            after.append(run)
        else:
            for part, chosen in (
                (before, [record for record in run.records if record.offset() < offset]),
                (after, [record for record in run.records if record.offset() >= offset]),
            ):
                part.append(Run(chosen, chosen[0].offset(), chosen[-1].offset()))
    return before, after
