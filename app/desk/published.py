"""What the output topics hold, as read from them: what the web views show, and what a desk that begins compares with what it
wants to be there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from app.contract.leads import decode_lead, decode_overdue
from app.contract.rollups import decode_rollup, start_of_rollup
from app.desk.fold import DeskFold, Input, Output
from app.policy.model import DAY_MS

Rows = dict[bytes, bytes]  # by key


class Published:
    """The latest rows of the output topics, by topic. `held_ms`: by topic of rollups, how far back from the newest final period
    its rows are kept here.
    """

    def __init__(self, topics: Iterable[str], held_ms: Mapping[str, int], tally: "LeadTally | None" = None) -> None:
        self.rows: dict[str, Rows] = {topic: {} for topic in topics}
        self._tally = tally
        self._held_ms = held_ms
        self._newest_ms = dict.fromkeys(held_ms, 0)

    def take(self, record: Input) -> None:
        """Takes one record of an output topic, of one partition, in its order."""
        rows, key = self.rows[record.topic], record.key or b""
        if self._tally is not None:
            self._tally.change(record.topic, rows.get(key), record.value)
        if record.value is None:
            rows.pop(key, None)
        elif record.topic not in self._held_ms or self._is_held(record.topic, key, record.value):
            self.rows[record.topic][key] = record.value

    def _is_held(self, topic: str, key: bytes, row: bytes) -> bool:
        """Whether a rollup is recent enough to be kept; lets go what a newer final one makes too old, once a day of its time."""
        try:
            start_ms = start_of_rollup(key)
        except ValueError:
            return False
        former_ms, held_ms = self._newest_ms[topic], self._held_ms[topic]
        if start_ms // DAY_MS > former_ms // DAY_MS and _is_final(row):
            self._newest_ms[topic] = start_ms
            rows = self.rows[topic]
            self.rows[topic] = {key: row for key, row in rows.items() if start_of_rollup(key) >= start_ms - held_ms}
        return start_ms >= self._newest_ms[topic] - held_ms


def _is_final(row: bytes) -> bool:
    try:
        return decode_rollup(row).final
    except msgspec.DecodeError:
        return False


class LeadTally:
    """How many leads there are by state and temperature, and how many are overdue by action. What is no row counts nothing."""

    def __init__(self, leads: str, overdue: str) -> None:
        self.leads: Counter[tuple[str, str]] = Counter()
        self.overdue: Counter[str] = Counter()
        self._topics = (leads, overdue)

    def change(self, topic: str, before: bytes | None, after: bytes | None) -> None:
        """Takes a row out and its successor in."""
        if topic in self._topics:
            for value, sign in ((before, -1), (after, 1)):
                if value is not None:
                    self._add(topic, value, sign)

    def _add(self, topic: str, value: bytes, sign: int) -> None:
        try:
            if topic == self._topics[0]:
                lead = decode_lead(value)
                self.leads[lead.state, lead.temperature] += sign
            else:
                self.overdue[decode_overdue(value).conversion_name] += sign
        except msgspec.DecodeError:
            return


def missing(folds: Iterable[DeskFold], published: Published, now_ms: int) -> Iterator[Output]:
    """What a desk that begins must publish, so that the topics hold what its folds say. Their inputs are read to their ends."""
    for fold in folds:
        gone = {topic: set(published.rows[topic]) for topic in fold.outputs}
        for row in fold.rows(now_ms):
            gone[row.topic].discard(row.key)
            if published.rows[row.topic].get(row.key) != row.value:
                yield row
        yield from (
            Output(topic, key, None) for topic, keys in gone.items() for key in keys if not fold.lasts(topic, key)
        )
