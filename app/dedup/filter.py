"""A Bloom filter over 63-bit ids, vectorised: it spares Redis the question for ids that certainly are new.

Blocked: an id's four bits lie in one 64-bit word, so a question touches one cache line. A layer holds 16 bits an id;
when it is full a twice larger one is put on top, so the share of false positives stays below about 1 % a layer.
"""

from typing import Final

import numpy as np

from app.columns.compiled import FLAGS, INT, INTS, WORDS, compiled, filled, inlined

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_ONE: Final = np.uint64(1)
_SIX: Final = np.uint64(63)  # of six bits the largest number
_6, _12, _18 = np.uint64(6), np.uint64(12), np.uint64(18)
_BITS_PER_ID: Final = 16
_FIRST_CAPACITY: Final = 1 << 17


class IdFilter:
    """Knows of every id that was added; may believe of few others that they were."""

    def __init__(self, capacity: int = _FIRST_CAPACITY) -> None:
        self._layers: list[np.ndarray] = []
        self._room = 0
        self._capacity = capacity

    def add(self, ids: np.ndarray) -> None:
        """Adds ids (int64, not negative)."""
        if not len(ids):
            return
        if self._room < len(ids):
            while self._capacity < len(ids):
                self._capacity *= 2
            self._layers.append(np.zeros(self._capacity * _BITS_PER_ID // 64, dtype=np.uint64))
            self._room = self._capacity
            self._capacity *= 2
        self._room -= len(ids)
        _add_all(ids, self._layers[-1], _shift(self._layers[-1]))

    def may_hold(self, ids: np.ndarray) -> np.ndarray:
        """For each id (int64): False if it certainly was not added."""
        found = np.zeros(len(ids), dtype=bool)
        for layer in self._layers:
            _look_all(ids, layer, _shift(layer), found)
        return found

    def size_bytes(self) -> int:
        """The memory that the layers take."""
        return sum(layer.nbytes for layer in self._layers)


def _shift(layer: np.ndarray) -> int:
    """By how much a mixed id is shifted to be the place of its word; layers are powers of two."""
    return 65 - len(layer).bit_length()


@inlined
def _mask(raw: np.uint64) -> np.uint64:
    """An id's bits in its word."""
    return _ONE << (raw & _SIX) | _ONE << (raw >> _6 & _SIX) | _ONE << (raw >> _12 & _SIX) | _ONE << (raw >> _18 & _SIX)


@compiled(INTS, filled(WORDS), INT)
def _add_all(ids: np.ndarray, layer: np.ndarray, shift: int) -> None:
    for row in range(len(ids)):
        raw = np.uint64(ids[row])
        layer[(raw * _GOLDEN) >> np.uint64(shift)] |= _mask(raw)


@compiled(INTS, WORDS, INT, filled(FLAGS))
def _look_all(ids: np.ndarray, layer: np.ndarray, shift: int, found: np.ndarray) -> None:
    for row in range(len(ids)):
        raw = np.uint64(ids[row])
        mask = _mask(raw)
        found[row] |= layer[(raw * _GOLDEN) >> np.uint64(shift)] & mask == mask
