"""Columns of short texts as spans of one buffer: hashed, compared and picked without a Python object each."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

PAD: Final = 8  # bytes behind the last text, so that a word may be read at its last byte
ABSENT: Final = -1  # the length of a text that is not there, as a field that an event does not have

_M: Final = np.uint64(0xC6A4A7935BD1E995)
_R: Final = np.uint64(47)
_WORD: Final = 8
_SLOTS_MIN: Final = 1 << 12
_SLOTS_A_CODE: Final = 4
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_ONES, _TOPS, _SPACES, _BACKSLASHES, _DELETES = (  # in every byte of a word
    np.uint64(byte * 0x0101010101010101) for byte in (0x01, 0x80, ord(" "), ord("\\"), 0x7F)
)
_SLICE_BYTES: Final = 1 << 17
# The mask of the first so many bytes of a little-endian word.
_MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)


class Texts(NamedTuple):
    """A column of texts in UTF-8: each a span of `buffer` (uint8, with PAD bytes behind the last span)."""

    buffer: np.ndarray
    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64, in bytes; ABSENT where there is none

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray) -> "Texts":
        """The texts of some rows, by index or mask."""
        return Texts(self.buffer, self.starts[rows], self.lengths[rows])

    def at(self, row: int) -> str | None:
        """One text; None where it is absent."""
        start, length = int(self.starts[row]), int(self.lengths[row])
        return None if length == ABSENT else self.buffer[start : start + length].tobytes().decode()

    def to_list(self) -> list[str | None]:
        """All of them, as strings."""
        raw = self.buffer.tobytes()
        return [
            None if length == ABSENT else raw[start : start + length].decode()
            for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        ]


def texts_of(values: Sequence[bytes | None]) -> Texts:
    """A column of its own buffer."""
    present = [value or b"" for value in values]
    sizes = np.fromiter(map(len, present), dtype=np.int64, count=len(present))
    buffer = np.frombuffer(b"".join(present) + bytes(PAD), dtype=np.uint8)
    lengths = sizes if None not in values else np.where([value is None for value in values], ABSENT, sizes)
    return Texts(buffer, np.cumsum(sizes) - sizes, lengths)


def words_of(buffer: np.ndarray) -> np.ndarray:
    """Little-endian words of 8 bytes, one beginning at every byte of the buffer."""
    return np.ndarray(shape=(max(len(buffer) - _WORD + 1, 0),), dtype="<u8", buffer=buffer.data, strides=(1,))


def hash64(texts: Texts, seeds: np.ndarray | np.uint64 = _ZERO) -> np.ndarray:
    """The 64-bit hash (uint64) of each text: MurmurHash64A (Austin Appleby), so it is stable over processes and releases.

    An absent text has the hash 0, and no other one has.
    """
    words, starts = words_of(texts.buffer), texts.starts
    lengths = np.maximum(texts.lengths, 0)
    hashes = seeds ^ (lengths.astype(np.uint64) * _M)
    longest = int(lengths.max(initial=0))
    for at in range(0, longest, _WORD):
        rows = slice(None) if at == 0 else np.flatnonzero(lengths > at)
        left = np.minimum(lengths[rows] - at, _WORD)
        # an empty text at the very end of the buffer has no word to read, and needs none
        word = words[np.minimum(starts[rows] + at, len(words) - 1)] & _MASKS[left]
        mixed = word * _M
        mixed = (mixed ^ (mixed >> _R)) * _M
        held = hashes[rows]
        whole = (held ^ mixed) * _M
        part = (held ^ word) * _M
        hashes[rows] = np.where(left == _WORD, whole, np.where(left == 0, held, part))
    hashes = (hashes ^ (hashes >> _R)) * _M
    hashes ^= hashes >> _R
    hashes[hashes == 0] = 1
    return np.where(texts.lengths == ABSENT, _ZERO, hashes)


def stir(hashes: np.ndarray) -> np.ndarray:
    """Spreads every bit of 64-bit values (uint64) over all of them, so that sums of several keep them apart."""
    stirred = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    stirred = (stirred ^ (stirred >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return stirred ^ (stirred >> np.uint64(33))


def equal(left: Texts, right: Texts) -> np.ndarray:
    """Row by row, whether the texts are the same bytes."""
    same = left.lengths == right.lengths
    lengths = np.where(same, left.lengths, 0)
    left_words, right_words = words_of(left.buffer), words_of(right.buffer)
    for at in range(0, int(lengths.max(initial=0)), _WORD):
        rows = np.flatnonzero(lengths > at)
        mask = _MASKS[np.minimum(lengths[rows] - at, _WORD)]
        differ = (left_words[left.starts[rows] + at] ^ right_words[right.starts[rows] + at]) & mask
        same[rows[differ != 0]] = False
    return same


class Coded(NamedTuple):
    """A column of names with the 64-bit code (uint64) of each: its hash; 0 where there is none."""

    texts: Texts
    codes: np.ndarray

    def take(self, rows: np.ndarray) -> "Coded":
        """The names of some rows, by index or mask."""
        return Coded(self.texts.take(rows), self.codes[rows])


def coded(texts: Texts) -> Coded:
    """A column with its codes, which are stable over processes and releases."""
    return Coded(texts, hash64(texts))


class Names(dict[int, str | None]):
    """The names behind codes, as far as they were met; emptied where they are too many, since they can be met again."""

    def __init__(self, size_max: int = 1_000_000) -> None:
        super().__init__({0: None})
        self.size_max = size_max

    def of(self, column: Coded, rows: np.ndarray) -> list[str | None]:
        """The names of some rows of a column."""
        codes = column.codes[rows].tolist()
        if len(self) > self.size_max:
            self.clear()
            self[0] = None
        for place, code in enumerate(codes):
            if code not in self:
                self[code] = column.texts.at(int(rows[place]))
        return [self[code] for code in codes]


class KnownCodes:
    """Which 64-bit codes (uint64, 0 among them) were met before; few instructions a code that was."""

    def __init__(self) -> None:
        self._codes = {0}
        self._slots = np.zeros(_SLOTS_MIN, dtype=np.uint64)  # at a code's last bits: the last such code that was met

    def __len__(self) -> int:
        return len(self._codes)

    def meet(self, codes: np.ndarray) -> list[int]:
        """The rows at which codes are met for the first time, one each; they are known from now on."""
        rows = np.flatnonzero(self._slots[self._places(codes)] != codes)
        unlikely, first = np.unique(codes[rows], return_index=True)
        new = [
            row for code, row in zip(unlikely.tolist(), rows[first].tolist(), strict=True) if code not in self._codes
        ]
        self._codes.update(unlikely.tolist())
        if len(self._codes) * _SLOTS_A_CODE > len(self._slots):
            self._slots = np.zeros(2 * len(self._slots), dtype=np.uint64)
            unlikely = np.fromiter(self._codes, dtype=np.uint64, count=len(self._codes))
        self._slots[self._places(unlikely)] = unlikely
        return new

    def _places(self, codes: np.ndarray) -> np.ndarray:
        return (codes & np.uint64(len(self._slots) - 1)).astype(np.int64)


def begins_with(words: np.ndarray, starts: np.ndarray, constant: bytes) -> np.ndarray:
    """Whether the bytes from each start on are these; `words` of the buffer."""
    size = len(constant)
    if size < _WORD:
        places = np.minimum(starts, len(words) - 1)
        return words[places] & _MASKS[size] == np.uint64(int.from_bytes(constant, "little"))
    places = np.minimum(starts, len(words) - size)
    holds = words[places] == np.uint64(int.from_bytes(constant[:_WORD], "little"))
    for at in (*range(_WORD, size - _WORD, _WORD), size - _WORD):  # the last word may overlap the one before
        holds &= words[places + at] == np.uint64(int.from_bytes(constant[at : at + _WORD], "little"))
    return holds


def odd_bytes(buffer: np.ndarray) -> np.ndarray:
    """Where a text needs a JSON decoder's care, or is not ASCII: places of a backslash, of what is below 32 or above 126."""
    found = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(buffer), _SLICE_BYTES):
        part = buffer[first : first + _SLICE_BYTES]
        words = part[: len(part) // _WORD * _WORD].view("<u8")
        marks = words | (words - _SPACES) & ~words
        for value in (_BACKSLASHES, _DELETES):
            other = words ^ value
            marks |= (other - _ONES) & ~other
        likely = np.flatnonzero(marks & _TOPS)
        places = np.concatenate(
            [(likely[:, None] * _WORD + np.arange(_WORD)).ravel(), np.arange(len(words) * _WORD, len(part))]
        )
        held = part[places]
        found.append(first + places[(held == ord("\\")) | (held < ord(" ")) | (held > ord("~"))])
    return np.concatenate(found)


def eight_digits(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which words are 8 decimal digits, and the numbers (uint64) they write: all digits of a word at once."""
    nines = (words + np.uint64(0x4646464646464646)) | (words - np.uint64(0x3030303030303030))
    value = words - np.uint64(0x3030303030303030)
    value = value * np.uint64(10) + (value >> np.uint64(8))
    pairs = np.uint64(0x000000FF000000FF)
    high = (value & pairs) * np.uint64(0x000F424000000064)
    low = ((value >> np.uint64(16)) & pairs) * np.uint64(0x0000271000000001)
    return nines & np.uint64(0x8080808080808080) == 0, (high + low) >> np.uint64(32)
