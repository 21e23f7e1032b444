"""Where in a run the records of a hash stand: all that is held in memory of each record."""

from typing import Final

import numpy as np

# Records from which on the first bits of their hashes take less room than the places that stand for them.
LARGE: Final = 1 << 17
_SMALL_BITS, _LARGE_BITS = 10, 16
_BITS: Final = 32  # of what is indexed


class Index:
    """The upper halves of a run's hashes (sorted uint32), in two parts: where those begin that share their first bits, and their
    other bits. So a large run takes some 2 to 3 bytes a record instead of 4, and a search looks at a few that stand together.
    """

    __slots__ = ("_rest", "_shift", "_starts")

    def __init__(self, upper: np.ndarray) -> None:
        is_large = len(upper) >= LARGE
        bits = _LARGE_BITS if is_large else _SMALL_BITS
        self._shift = _BITS - bits
        firsts = np.arange(1 << bits, dtype=np.uint32) << np.uint32(self._shift)
        self._starts = np.append(upper.searchsorted(firsts), len(upper)).astype(np.uint32)
        self._rest = upper.astype(np.uint16) if is_large else upper  # of a large run's the last 16 bits

    def upper(self) -> np.ndarray:
        """The upper halves (uint32), in order."""
        if self._rest.dtype != np.uint16:
            return self._rest
        firsts = np.arange(len(self._starts) - 1, dtype=np.uint32) << np.uint32(self._shift)
        return np.repeat(firsts, np.diff(self._starts)) | self._rest

    def size_bytes(self) -> int:
        """The memory that it takes."""
        return self._starts.nbytes + self._rest.nbytes

    def find(self, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the upper halves (uint32) those that are held: their rows, and the first place and the last + 1 of each."""
        from app.columns import loops

        find_all = loops.find_shorts if self._rest.dtype == np.uint16 else loops.find_halves
        rows, first, last = (np.empty(len(upper), dtype=np.int64) for _ in range(3))
        count = find_all(
            upper, self._starts, self._rest, self._shift, np.iinfo(self._rest.dtype).max, rows, first, last
        )
        return rows[:count], first[:count], last[:count]
