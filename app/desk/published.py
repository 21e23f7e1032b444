"""What the output topics hold, as read from them: what the web views show, and what a desk that begins compares with what it
wants to be there.
"""

from collections.abc import Iterable, Iterator

from app.desk.fold import DeskFold, Input, Output

Rows = dict[bytes, bytes]  # by key


class Published:
    """The latest rows of the output topics, by topic. Of a topic in `shown` every change is told to its function."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.rows: dict[str, Rows] = {topic: {} for topic in topics}

    def take(self, record: Input) -> None:
        """Takes one record of an output topic, of one partition, in its order."""
        rows, key = self.rows[record.topic], record.key or b""
        if record.value is None:
            rows.pop(key, None)
        else:
            rows[key] = record.value


def missing(folds: Iterable[DeskFold], published: Published, now_ms: int) -> Iterator[Output]:
    """What a desk that begins must publish, so that the topics hold what its folds say. Their inputs are read to their ends."""
    for fold in folds:
        wanted: set[tuple[str, bytes]] = set()
        for row in fold.rows(now_ms):
            wanted.add((row.topic, row.key))
            if published.rows[row.topic].get(row.key) != row.value:
                yield row
        for topic in fold.outputs:
            if topic not in fold.lasting:
                gone = [key for key in published.rows[topic] if (topic, key) not in wanted]
                yield from (Output(topic, key, None) for key in gone)
