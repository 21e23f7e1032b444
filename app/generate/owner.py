"""Which partition owns a user: what the producers' partitioner gives for the user's key, computed for one key.

The generator needs it for the few records that it puts on a partition of somebody else. It is on purpose not the
column-wise function of the intake: a generator that shared the product's code could not find a fault in it.
"""

import zlib

_SEED = 0x9747B28C
_M = 0x5BD1E995
_32 = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of Java's `DefaultPartitioner`, as an unsigned integer."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * _M & _32
        k = (k ^ k >> 24) * _M & _32
        h = h * _M & _32 ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _32
    h = (h ^ h >> 13) * _M & _32
    return h ^ h >> 15


def owner_partition(key: bytes, partitions: int, partitioner: str) -> int:
    """The partition that a producer with this partitioner (`murmur2` or `crc32`) gives to the key."""
    if partitioner == "murmur2":
        return (murmur2(key) & 0x7FFFFFFF) % partitions
    return zlib.crc32(key) % partitions
