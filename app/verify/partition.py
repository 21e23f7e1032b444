"""Which partition owns a user: Kafka's two usual partitioners, written out (docs/counting.md, section 1)."""

from typing import Final

_32_BITS: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of Kafka's Java producer, as an unsigned integer."""
    multiplier = 0x5BD1E995
    result = (0x9747B28C ^ len(data)) & _32_BITS
    whole = len(data) - len(data) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little")
        word = (word * multiplier) & _32_BITS
        word ^= word >> 24
        word = (word * multiplier) & _32_BITS
        result = ((result * multiplier) & _32_BITS) ^ word
    if whole < len(data):
        result ^= int.from_bytes(data[whole:], "little")
        result = (result * multiplier) & _32_BITS
    result ^= result >> 13
    result = (result * multiplier) & _32_BITS
    return result ^ (result >> 15)


def crc32(data: bytes) -> int:
    """The 32-bit CRC of librdkafka's `consistent` partitioners (polynomial 0x04C11DB7, reflected)."""
    result = _32_BITS
    for byte in data:
        result ^= byte
        for _ in range(8):
            result = (result >> 1) ^ 0xEDB88320 if result & 1 else result >> 1
    return result ^ _32_BITS


def owner_of(user_id: str, partitions: int, partitioner: str) -> int:
    """The number of the partition, of `partitions`, that owns a user; `partitioner` is `murmur2` or `crc32`."""
    key = user_id.encode()
    if partitioner == "murmur2":
        return (murmur2(key) & 0x7FFFFFFF) % partitions  # Java's toPositive: the sign bit cleared
    if partitioner == "crc32":
        return crc32(key) % partitions
    raise ValueError(f"no partitioner {partitioner!r}")
