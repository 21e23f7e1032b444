"""Which partition owns a user: the producers' own partitioner, over a whole column at once."""

import zlib

import numpy as np

from app.columns.compiled import INT, INTS, WORDS, compiled, filled
from app.columns.loops import MASKS
from app.columns.texts import Texts, words_of

_SEED = np.uint64(0x9747B28C)
_M = np.uint64(0x5BD1E995)
_HALF = np.uint64(0xFFFFFFFF)  # Numba has no arithmetic of 32 bits
_POSITIVE = np.uint64(0x7FFFFFFF)
_R24, _R13, _R15 = np.uint64(24), np.uint64(13), np.uint64(15)


def owners(users: Texts, partitions: int, partitioner: str) -> np.ndarray:
    """The owning partition (int64) of each user id, by `murmur2` (Java's default) or `crc32` (librdkafka's)."""
    if partitioner == "crc32":
        raw = memoryview(users.buffer)
        spans = zip(users.starts.tolist(), (users.starts + users.lengths).tolist(), strict=True)
        return np.array([zlib.crc32(raw[start:end]) for start, end in spans], dtype=np.int64) % partitions
    found = np.empty(len(users), dtype=np.int64)
    _murmur2_all(words_of(users.buffer), users.starts, users.lengths, partitions, found)
    return found


@compiled(WORDS, INTS, INTS, INT, filled(INTS))
def _murmur2_all(
    words: np.ndarray, starts: np.ndarray, lengths: np.ndarray, partitions: int, found: np.ndarray
) -> None:
    """Kafka's murmur2 of each key, positive, modulo `partitions`."""
    for row in range(len(starts)):
        at, end = starts[row], starts[row] + lengths[row]
        held = _SEED ^ np.uint64(lengths[row])
        while at + 4 <= end:
            mixed = ((words[at] & _HALF) * _M) & _HALF
            mixed = ((mixed ^ (mixed >> _R24)) * _M) & _HALF
            held = ((held * _M) & _HALF) ^ mixed
            at += 4
        if at < end:
            held = ((held ^ (words[at] & MASKS[end - at])) * _M) & _HALF
        held = ((held ^ (held >> _R13)) * _M) & _HALF
        found[row] = np.int64((held ^ (held >> _R15)) & _POSITIVE) % partitions
