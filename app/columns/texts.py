"""Columns of short texts as spans of one buffer: hashed, compared and picked without a Python object each."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

PAD: Final = 8  # bytes behind the last text, so that a word may be read at its last byte
ABSENT: Final = -1  # the length of a text that is not there, as a field that an event does not have

_WORD: Final = 8
_SLOTS_MIN: Final = 1 << 12
_SLOTS_A_CODE: Final = 4
_NO_SEED: Final = np.zeros(1, dtype=np.uint64)


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
    try:
        buffer = in_a_row(values)  # type: ignore[arg-type]
        sizes = lengths = sizes_of(values)  # type: ignore[arg-type]
    except TypeError:  # some are absent
        present = [value or b"" for value in values]
        buffer = in_a_row(present)
        sizes = sizes_of(present)
        lengths = np.where([value is None for value in values], ABSENT, sizes)
    return Texts(buffer, np.cumsum(sizes) - sizes, lengths)


def in_a_row(values: Sequence[bytes], room_bytes: int = PAD) -> np.ndarray:
    """The bytes of all values one behind the other (uint8), with so many that are 0 behind them. Raises TypeError where one is
    absent.
    """
    return np.frombuffer(bytearray().join([*values, bytes(room_bytes)]), dtype=np.uint8)  # copied once


def sizes_of(values: Sequence[bytes]) -> np.ndarray:
    """The length (int64) of each in bytes."""
    return np.fromiter(map(len, values), dtype=np.int64, count=len(values))


def words_of(buffer: np.ndarray) -> np.ndarray:
    """Little-endian words of 8 bytes, one beginning at every byte of the buffer."""
    return np.ndarray(shape=(max(len(buffer) - _WORD + 1, 0),), dtype="<u8", buffer=buffer.data, strides=(1,))


def hash64(texts: Texts, seeds: np.ndarray = _NO_SEED) -> np.ndarray:
    """The 64-bit hash (uint64) of each text: MurmurHash64A (Austin Appleby), so it is stable over processes and releases.

    An absent text has the hash 0, and no other one has. `seeds` (uint64): one for each text, or one for all.
    """
    hashes = np.empty(len(texts), dtype=np.uint64)
    from app.columns import loops

    loops.hash_all(words_of(texts.buffer), texts.starts, texts.lengths, seeds, hashes)
    return hashes


def stir(hashes: np.ndarray) -> np.ndarray:
    """Spreads every bit of 64-bit values (uint64) over all of them, so that sums of several keep them apart."""
    stirred = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    stirred = (stirred ^ (stirred >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return stirred ^ (stirred >> np.uint64(33))


def padded(texts: Texts, width: int) -> np.ndarray:
    """The texts, none of them longer than `width` bytes, as NumPy's strings of that width: zeros stand behind each."""
    copies = np.zeros((len(texts), width), dtype=np.uint8)
    from app.columns import loops

    loops.copy_all(texts.buffer, texts.starts, texts.lengths, copies)
    return copies.view(f"S{width}")[:, 0]


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
        from app.columns import loops

        rows = np.empty(len(codes), dtype=np.int64)
        unlikely = rows[: loops.unlikely(codes, self._slots, rows)]
        new = []
        for row, code in zip(unlikely.tolist(), codes[unlikely].tolist(), strict=True):
            if code not in self._codes:
                self._codes.add(code)
                new.append(row)
        if len(self._codes) * _SLOTS_A_CODE > len(self._slots):
            size = 1 << (len(self._codes) * _SLOTS_A_CODE).bit_length()
            self._slots = np.zeros(size, dtype=np.uint64)
            known = np.fromiter(self._codes, dtype=np.uint64, count=len(self._codes))
            self._slots[(known & np.uint64(size - 1)).astype(np.int64)] = known
        return new
