"""Records that break their contract: counted by topic and reason, and written to a topic under their coordinates."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from app.contract import reasons
from app.contract.events import Rejection
from app.contract.rows import dead_letter, encode
from app.desk.fold import Input, Output

MOST_LETTERS: Final = 100_000  # that wait to be published, some 600 bytes each; further ones are only counted
Row = TypeVar("Row", bound=msgspec.Struct)


class Refusals:
    """The refused records of a fold. A record that is read again is the same letter under the same key, byte for byte: it
    says where the record lies, how long it is and its digest, and leaves its bytes and its key where they are, since letters
    are kept for ever and may be of persons.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.counted: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[bytes, bytes] = {}

    def add(self, record: Input, rejection: Rejection) -> None:
        """Counts a refused record, and keeps its letter until it is given out."""
        self.counted[record.topic, rejection.reason] += 1
        if len(self._waiting) < MOST_LETTERS:
            letter = dead_letter(rejection, *record._replace(key=None))
            name = encode([record.topic, record.partition, record.offset])
            self._waiting[name] = encode(msgspec.structs.replace(letter, value_base64=None, truncated=True))

    def letters(self) -> Iterator[Output]:
        """The letters that were not given out yet."""
        waiting, self._waiting = self._waiting, {}
        for key, value in waiting.items():
            yield Output(self.topic, key, value)


def judge_row(decode: Callable[[bytes], Row], value: bytes) -> Row | Rejection:
    """A row of one of onecount's own topics; a `Rejection` where it is none of this release."""
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        return Rejection(reasons.INVALID_FIELD, "", str(error)[:200])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return Rejection(reasons.INVALID_JSON, "", str(error)[:200])
