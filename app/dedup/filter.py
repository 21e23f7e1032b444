"""A Bloom filter over 63-bit ids, vectorised: it spares Redis the question for ids that certainly are new.

Blocked: an id's eight bits lie in four words side by side, two in each (a split block filter: Putze, Sanders and Singler, 2007), so
a question touches one cache line. A layer holds 12 bits an id; when it is full a twice larger one is put on top, so the share of
false positives stays below 0.5 % a layer.
"""

from typing import Final

import numpy as np

from app.columns.compiled import FLAGS, INTS, WORDS, compiled, filled, inlined

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_NOTHING, _ONE = np.uint64(0), np.uint64(1)
_AT_ONCE: Final = 256  # ids whose blocks are fetched together; all of them fit into the core's first cache
_SIX: Final = np.uint64(63)  # of six bits the largest number
_HALF: Final = np.uint64(32)
_WORDS: Final = 4  # of a block
_BITS_PER_ID: Final = 12
_BLOCK_BITS: Final = 64 * _WORDS
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
            blocks = -(-self._capacity * _BITS_PER_ID // _BLOCK_BITS)
            self._layers.append(_aligned(blocks))
            self._room = self._capacity
            self._capacity *= 2
        self._room -= len(ids)
        _add_all(ids, self._layers[-1])

    def may_hold(self, ids: np.ndarray) -> np.ndarray:
        """For each id (int64): False if it certainly was not added."""
        found = np.zeros(len(ids), dtype=bool)
        for layer in self._layers:
            _look_all(ids, layer, found)
        return found

    def size_bytes(self) -> int:
        """The memory that the layers take."""
        return sum(layer.nbytes for layer in self._layers)


def _aligned(blocks: int) -> np.ndarray:
    """So many empty blocks, none of which lies in two cache lines."""
    words = np.zeros((blocks + 1) * _WORDS, dtype=np.uint64)
    first = -(words.ctypes.data // words.itemsize) % _WORDS
    return words[first : first + blocks * _WORDS]


@inlined
def _block(raw: np.uint64, layer: np.ndarray) -> int:
    """Where an id's block begins."""
    return np.int64(((raw * _GOLDEN >> _HALF) * np.uint64(len(layer) // _WORDS)) >> _HALF) * _WORDS


@inlined
def _mask(raw: np.uint64, word: int) -> np.uint64:
    """An id's bits in a word of its block."""
    bits = raw >> np.uint64(12 * word)
    return _ONE << (bits & _SIX) | _ONE << (bits >> np.uint64(6) & _SIX)


@compiled(INTS, filled(WORDS))
def _add_all(ids: np.ndarray, layer: np.ndarray) -> None:
    for row in range(len(ids)):
        raw = np.uint64(ids[row])
        at = _block(raw, layer)
        for word in range(_WORDS):
            layer[at + word] |= _mask(raw, word)


@compiled(INTS, WORDS, filled(FLAGS))
def _look_all(ids: np.ndarray, layer: np.ndarray, found: np.ndarray) -> None:
    for begin in range(0, len(ids), _AT_ONCE):
        end = min(begin + _AT_ONCE, len(ids))
        # first a mere look at each block, so that many of them are fetched from memory at once
        fetched = _NOTHING
        for row in range(begin, end):
            fetched |= layer[_block(np.uint64(ids[row]), layer)]
        if fetched == _NOTHING:
            continue
        for row in range(begin, end):
            raw = np.uint64(ids[row])
            at = _block(raw, layer)
            missing = _NOTHING
            for word in range(_WORDS):  # all of them: a branch that is guessed wrongly costs more than a look
                mask = _mask(raw, word)
                missing |= mask & ~layer[at + word]
            found[row] |= missing == _NOTHING
