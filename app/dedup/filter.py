"""A Bloom filter over 63-bit ids, vectorised: it spares Redis the question for ids that certainly are new.

Blocked: an id's four bits lie in one 64-bit word, so a question touches one cache line. A layer holds 16 bits an id;
when it is full a twice larger one is put on top, so the share of false positives stays below about 1 % a layer.
"""

from typing import Final

import numpy as np

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_ONE: Final = np.uint64(1)
_SIX: Final = np.uint64(63)
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
        mixed, masks = _mix(ids)
        layer = self._layers[-1]
        np.bitwise_or.at(layer, _words(mixed, layer), masks)

    def may_hold(self, ids: np.ndarray) -> np.ndarray:
        """For each id (int64): False if it certainly was not added."""
        found = np.zeros(len(ids), dtype=bool)
        if not self._layers:
            return found
        mixed, masks = _mix(ids)
        for layer in self._layers:
            found |= layer[_words(mixed, layer)] & masks == masks
        return found

    def size_bytes(self) -> int:
        """The memory that the layers take."""
        return sum(layer.nbytes for layer in self._layers)


def _mix(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raw = ids.astype(np.uint64)
    masks = _ONE << (raw & _SIX)
    for shift in (6, 12, 18):
        masks |= _ONE << (raw >> np.uint64(shift) & _SIX)
    return raw * _GOLDEN, masks


def _words(mixed: np.ndarray, layer: np.ndarray) -> np.ndarray:
    bits = len(layer).bit_length() - 1  # layers are powers of two
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)
