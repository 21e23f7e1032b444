"""Which partition owns a user: the producers' own partitioner, over a whole column at once."""

import zlib

import numpy as np

from app.columns.texts import Texts

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)


def owners(users: Texts, partitions: int, partitioner: str) -> np.ndarray:
    """The owning partition (int64) of each user id, by `murmur2` (Java's default) or `crc32` (librdkafka's)."""
    if partitioner == "crc32":
        raw = memoryview(users.buffer)
        spans = zip(users.starts.tolist(), (users.starts + users.lengths).tolist(), strict=True)
        return np.array([zlib.crc32(raw[start:end]) for start, end in spans], dtype=np.int64) % partitions
    return (_murmur2(users) & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def _murmur2(keys: Texts) -> np.ndarray:
    """Kafka's murmur2 of each key, one NumPy pass per key length."""
    hashes = np.empty(len(keys), dtype=np.uint32)
    with np.errstate(over="ignore"):
        for length in np.unique(keys.lengths).tolist():
            rows = np.flatnonzero(keys.lengths == length)
            hashes[rows] = _murmur2_of_length(keys.buffer, keys.starts[rows], length)
    return hashes


def _murmur2_of_length(data: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    matrix = data[starts[:, None] + np.arange(length)].astype(np.uint32)
    h = np.full(len(starts), _SEED ^ np.uint32(length), dtype=np.uint32)
    whole = length // 4 * 4
    for at in range(0, whole, 4):
        k = matrix[:, at] | matrix[:, at + 1] << 8 | matrix[:, at + 2] << 16 | matrix[:, at + 3] << 24
        k = k * _M
        k ^= k >> np.uint32(24)
        h = h * _M ^ k * _M
    if whole < length:
        for at in range(length - 1, whole - 1, -1):
            h ^= matrix[:, at] << np.uint32(8 * (at - whole))
        h = h * _M
    h ^= h >> np.uint32(13)
    h = h * _M
    h ^= h >> np.uint32(15)
    return h
