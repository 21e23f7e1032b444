"""What became of dead letters: one mark each on a compacted topic, written in the transaction that sends the event again.

The key of a mark is the refused record's first coordinates, its timestamp among them: a raw topic that was deleted and made
anew has the same offsets for other records.
"""

import sqlite3
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import orjson

from app.contract.rows import DeadLetter
from app.engine.clients import Clients
from app.letters.log import committed_spans, read_committed
from app.letters.refusal import LettersError
from app.settings import Settings

OPEN: Final = "open"
RETRIED: Final = "retried"
DROPPED: Final = "dropped"
STATES: Final = (OPEN, RETRIED, DROPPED)
_ROWS: Final = 10_000
_CACHE_KIB: Final = 16 * 1024


class Mark(msgspec.Struct, frozen=True, gc=False):
    """`state` is RETRIED or DROPPED; `partition` and `offset` say where in its source topic a retried event lies now."""

    state: str
    reason: str
    partition: int | None = None
    offset: int | None = None


class Known(NamedTuple):
    """A mark as it was read, and when it was written (epoch ms, the broker's clock)."""

    mark: Mark
    handled_ms: int


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Mark).decode


def key_of(letter: DeadLetter) -> bytes:
    """The Kafka key of a letter's mark."""
    return orjson.dumps([letter.topic, letter.partition, letter.offset, letter.timestamp_ms])


class Marks:
    """All marks by their keys, in a temporary file once they are many: a lookup costs no memory, however many there are."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.executescript(
            f"PRAGMA cache_size = -{_CACHE_KIB}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE mark (key BLOB PRIMARY KEY, value BLOB, handled_ms INTEGER) WITHOUT ROWID"
        )

    def add(self, found: Iterable[tuple[bytes, bytes | None, int]]) -> None:
        """Takes in marks (key, encoded mark, when it was written), each in place of one that was there. Raises `LettersError`
        where the temporary file finds no room.
        """
        rows = iter(found)
        while part := list(islice(rows, _ROWS)):
            try:
                self._rows.execute("BEGIN")
                self._rows.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", part)
                self._rows.execute("COMMIT")
            except sqlite3.Error as error:
                raise LettersError(
                    f"the marks of handled letters find no room for a temporary file ({error}): set TMPDIR to a folder that has some"
                ) from error

    def of(self, letter: DeadLetter) -> Known | None:
        """A letter's mark; None while it is open."""
        row = self._rows.execute("SELECT value, handled_ms FROM mark WHERE key = ?", (key_of(letter),)).fetchone()
        is_open = row is None or row[0] is None  # a null value takes a mark back
        return None if is_open else Known(decode(row[0]), row[1])

    def state(self, letter: DeadLetter) -> str:
        """OPEN, RETRIED or DROPPED."""
        known = self.of(letter)
        return OPEN if known is None else known.mark.state

    def count(self) -> int:
        """How many letters have a mark."""
        return self._rows.execute("SELECT count(value) FROM mark").fetchone()[0]

    def close(self) -> None:
        """Gives the temporary file back."""
        self._rows.close()


def read_marks(settings: Settings, clients: Clients) -> Marks:
    """Every committed mark; those of a transaction that is open are not waited for. Raises `LettersError`, KafkaException."""
    marks = Marks()
    topic = settings.handled_topic
    messages = read_committed(clients, topic, committed_spans(settings, topic))
    marks.add((message.key(), message.value(), message.timestamp()[1]) for message in messages)
    return marks
