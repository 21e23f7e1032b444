"""One partition that a worker owns: how far it was read, what waits to be folded, and what makes a batch."""

from collections.abc import Sequence
from typing import NamedTuple

from app.engine.fold import Batch, Record
from app.engine.ledger import Mode


class Run(NamedTuple):
    """Records of one topic-partition that were consumed in one go, in order of their offsets."""

    records: Sequence[Record]
    first: int
    last: int


class Owned:
    """The offsets of an owned partition, by topic, and its consumed records that are not folded yet."""

    def __init__(self, epoch: int, mode: Mode, offsets: dict[str, int], committed: dict[str, int | None]) -> None:
        self.epoch = epoch
        self.mode = self.opened_as = mode
        self.next = offsets  # M: the first offset of each topic that is not in the state
        self.read = dict(offsets)  # the first offset of each topic that was not consumed yet
        self.committed = committed  # C, as it was when the partition was opened
        self.pending: dict[str, list[Run]] = {}
        self.at_end: set[str] = set()
        self.is_proven = False  # whether its offsets and its log were found to fit each other
        self.first: dict[str, int] = {}  # the first offset that each topic's log held when the partition was opened
        self.by_hand: set[str] = set()  # the topics whose offset in the group no worker has committed
        self.written = 0  # how many writes of its state there were
        self.discarded: Exception | None = (
            None  # why the state that was found is rebuilt: StateOutdated or StateDamaged
        )

    def add(self, topic: str, records: list[Record]) -> int:
        """Takes consumed records of one topic in, in order; how many. What was fetched before the partition was set back is dropped."""
        start = self.read[topic]
        if records[0].offset() < start:
            records = [record for record in records if record.offset() >= start]
            if not records:
                return 0
        run = Run(records, records[0].offset(), records[-1].offset())
        self.read[topic] = run.last + 1
        self.at_end.discard(topic)
        self.pending.setdefault(topic, []).append(run)
        return len(records)

    def behind(self, topic: str) -> bool:
        """Whether records of this topic that are published already are still to be read."""
        reached = self.committed.get(topic)
        return reached is not None and self.read[topic] < reached

    def take(self) -> Batch | None:
        """The records to fold now, by topic and offset. Those of a replay come all at once, cut exactly at C, since their
        batch was one; a rebuild's come as they are.
        """
        if not self.pending or (self.mode is Mode.REPLAY and any(self.behind(topic) for topic in self.read)):
            return None
        runs, self.pending = self.pending, {}
        if self.mode is not Mode.LIVE:
            for topic in list(runs):
                runs[topic], rest = _cut(runs[topic], self.committed.get(topic) or 0)
                if rest:
                    self.pending[topic] = rest
        batch = Batch([], {})
        for topic in sorted(runs):
            if runs[topic]:
                batch.ranges[topic] = (runs[topic][0].first, runs[topic][-1].last + 1)
                for run in runs[topic]:
                    batch.records.extend(run.records)
        return batch if batch.records else None

    def is_caught_up(self) -> bool:
        """Whether everything that is published is in the state again."""
        return all(not self.behind(topic) for topic in self.read) and all(
            offset >= (self.committed.get(topic) or 0) for topic, offset in self.next.items()
        )


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
