"""Redis in memory: one shared `Memory`, and a `Store` per connection, with the commands that the engine sends and no others.

Replies are what a real Redis answers (bytes, flat lists of pairs, None); a command on a key of another type fails. Every
change of a key moves its version on, emptying Redis included, so WATCH fails exactly where a real one would.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, Final

from app.engine.store import Command, StoreRefused, StoreUnavailable

_KINDS: Final = {dict: "hash", set: "set", bytes: "string"}


class Lost(Enum):
    """What becomes of a guarded write whose reply never comes."""

    WRITTEN = "written"
    UNWRITTEN = "unwritten"


class Memory:
    """What one Redis server holds: a dict (hash), a set or bytes (string) by key."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.versions: dict[bytes, int] = {}
        self.life = 0  # grows with every restart

    def empty(self, prefix: str = "") -> None:
        """Loses every key that begins with `prefix`, as a restart without its data would."""
        start = prefix.encode()
        for key in [key for key in self.values if key.startswith(start)]:
            del self.values[key]
            self.touch(key)

    def copy(self) -> dict[bytes, Any]:
        """What a disk would hold by now."""
        return {key: value if isinstance(value, bytes) else value.copy() for key, value in self.values.items()}

    def fall_back(self, disk: dict[bytes, Any]) -> None:
        """Restarts from what the disk held: the last writes are gone, and so is every connection (see `MemoryStore`)."""
        self.values = {key: value if isinstance(value, bytes) else value.copy() for key, value in disk.items()}
        self.life += 1

    def lose_tail(self, disk: dict[bytes, Any]) -> None:
        """A failover to a replica that lacked the last writes, and back to the first node, while nobody spoke to it: unlike
        in `fall_back`, connections outlive it.
        """
        for key in self.values.keys() | disk.keys():
            if self.values.get(key) != disk.get(key):
                self.touch(key)
        self.values = {key: value if isinstance(value, bytes) else value.copy() for key, value in disk.items()}

    def touch(self, key: bytes) -> None:
        """Notes a change of a key, for those who watch it."""
        self.versions[key] = self.versions.get(key, 0) + 1

    def look(self, key: bytes, kind: type) -> Any:
        """A key's value, None if there is none; fails on a value of another type, as Redis does."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, kind):
            raise StoreRefused(f"WRONGTYPE {key!r} is a {_KINDS[type(value)]}")
        return value

    def change(self, key: bytes, kind: Callable[[], Any]) -> Any:
        """A key's hash or set to be changed, a new one if there is none."""
        value = self.look(key, kind)  # type: ignore[arg-type]
        if value is None:
            value = self.values[key] = kind()
        self.touch(key)
        return value

    def drop_if_empty(self, key: bytes) -> None:
        """Redis has no empty hashes and sets."""
        if not self.values[key]:
            del self.values[key]


class MemoryStore:
    """One connection: a `Store` of the engine. `lost` names what becomes of the next guarded writes, None for a sound one."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.watched: dict[bytes, int] = {}
        self.queue: list[Command] | None = None
        self.life = memory.life
        self.lost: deque[Lost | None] = deque()
        self.refuse_reads = False  # whether the next call of `run` finds no Redis

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies in order."""
        listed = list(commands)
        if listed and (self.refuse_reads or self.life != self.memory.life):
            self.refuse_reads = False
            self.close()
            raise StoreUnavailable("Redis: no answer")
        return [self._one(command) for command in listed]

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """One MULTI/EXEC; False if a watched key has changed. Raises `StoreUnavailable` where the reply is to be lost."""
        fate = self.lost.popleft() if self.lost else None
        if fate is Lost.UNWRITTEN:
            self.close()
            raise StoreUnavailable("Redis: the connection broke before the write")
        done = self.run([("MULTI",), *commands, ("EXEC",)])[-1] is not None
        if fate is Lost.WRITTEN:
            self.close()
            raise StoreUnavailable("Redis: the connection broke after the write")
        return done

    def servers(self) -> "list[MemoryStore]":
        """The one server."""
        return [self]

    def close(self) -> None:
        """Ends the connection, and with it every WATCH."""
        self.watched = {}
        self.queue = None
        self.life = self.memory.life

    def _one(self, command: Command) -> Any:
        name, *arguments = command
        if name == "EXEC":
            return self._exec()
        if self.queue is not None:
            self.queue.append(command)
            return b"QUEUED"
        if name == "MULTI":
            self.queue = []
        elif name == "WATCH":
            for key in map(_bytes, arguments):
                self.watched.setdefault(key, self.memory.versions.get(key, 0))
        elif name == "UNWATCH":
            self.watched = {}
        else:
            return _COMMANDS[name](self.memory, *map(_bytes, arguments))
        return b"OK"

    def _exec(self) -> list[Any] | None:
        assert self.queue is not None, "EXEC without MULTI"
        queued, self.queue = self.queue, None
        unchanged = all(self.memory.versions.get(key, 0) == version for key, version in self.watched.items())
        self.watched = {}
        return [self._one(command) for command in queued] if unchanged else None


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    assert type(value) in (str, int), f"redis-py would refuse or mangle {value!r}"
    return str(value).encode()


def _hset(memory: Memory, key: bytes, *pairs: bytes) -> int:
    assert pairs, "HSET without a field is refused"
    assert len(pairs) % 2 == 0, "HSET with a field and no value is refused"
    held = memory.change(key, dict)
    before = len(held)
    held.update(zip(pairs[::2], pairs[1::2], strict=True))
    return len(held) - before


def _hdel(memory: Memory, key: bytes, *fields: bytes) -> int:
    assert fields, "HDEL without a field is refused"
    held = memory.look(key, dict)
    if held is None:
        return 0
    gone = [field for field in fields if held.pop(field, None) is not None]
    if gone:
        memory.touch(key)
        memory.drop_if_empty(key)
    return len(gone)


def _hincrby(memory: Memory, key: bytes, field: bytes, amount: bytes) -> int:
    held = memory.change(key, dict)
    number = int(held.get(field, b"0")) + int(amount)
    held[field] = str(number).encode()
    return number


def _hget(memory: Memory, key: bytes, field: bytes) -> bytes | None:
    return (memory.look(key, dict) or {}).get(field)


def _hmget(memory: Memory, key: bytes, *fields: bytes) -> list[bytes | None]:
    assert fields, "HMGET without a field is refused"
    held = memory.look(key, dict) or {}
    return [held.get(field) for field in fields]


def _hgetall(memory: Memory, key: bytes) -> list[bytes]:
    return [part for pair in (memory.look(key, dict) or {}).items() for part in pair]


def _hscan(memory: Memory, key: bytes, cursor: bytes, count: bytes, size: bytes) -> list[Any]:
    """In the order of the fields' hashes, as Redis: what is there all the time is found whatever comes and goes meanwhile."""
    assert count == b"COUNT"
    held = memory.look(key, dict) or {}
    places = {field: zlib.crc32(field) + 1 for field in held}
    left = sorted((place, field) for field, place in places.items() if place >= int(cursor))
    found = [part for _, field in left[: int(size)] for part in (field, held[field])]
    return [b"%d" % (left[int(size)][0] if len(left) > int(size) else 0), found]


def _hlen(memory: Memory, key: bytes) -> int:
    return len(memory.look(key, dict) or {})


def _sadd(memory: Memory, key: bytes, *members: bytes) -> int:
    assert members, "SADD without a member is refused"
    held = memory.change(key, set)
    before = len(held)
    held.update(members)
    return len(held) - before


def _srem(memory: Memory, key: bytes, *members: bytes) -> int:
    assert members, "SREM without a member is refused"
    held = memory.look(key, set)
    if held is None:
        return 0
    gone = held & set(members)
    held -= gone
    if gone:
        memory.touch(key)
        memory.drop_if_empty(key)
    return len(gone)


def _smembers(memory: Memory, key: bytes) -> list[bytes]:
    return sorted(memory.look(key, set) or ())


def _hkeys(memory: Memory, key: bytes) -> list[bytes]:
    return list(memory.look(key, dict) or {})


def _scan(memory: Memory, cursor: bytes, match: bytes, pattern: bytes, count: bytes, size: bytes) -> list[Any]:
    assert (cursor, match, count) == (b"0", b"MATCH", b"COUNT"), "all keys are given at once"
    return [b"0", [key for key in memory.values if fnmatchcase(key.decode(), pattern.decode())]]


def _get(memory: Memory, key: bytes) -> bytes | None:
    return memory.look(key, bytes)


def _mget(memory: Memory, *keys: bytes) -> list[bytes | None]:
    assert keys, "MGET without a key is refused"
    return [value if isinstance(value := memory.values.get(key), bytes) else None for key in keys]


def _getrange(memory: Memory, key: bytes, start: bytes, end: bytes) -> bytes:
    value: bytes = memory.look(key, bytes) or b""
    first, last = int(start), int(end)
    assert 0 <= first <= last, "an empty range, or one from the end"
    return value[first : last + 1]


def _set(memory: Memory, key: bytes, value: bytes) -> bytes:
    memory.values[key] = value
    memory.touch(key)
    return b"OK"


def _append(memory: Memory, key: bytes, value: bytes) -> int:
    memory.values[key] = (memory.look(key, bytes) or b"") + value
    memory.touch(key)
    return len(memory.values[key])


def _unlink(memory: Memory, *keys: bytes) -> int:
    assert keys, "UNLINK without a key is refused"
    found = [key for key in keys if memory.values.pop(key, None) is not None]
    for key in found:
        memory.touch(key)
    return len(found)


_COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    "HSET": _hset,
    "HDEL": _hdel,
    "HINCRBY": _hincrby,
    "HGET": _hget,
    "HMGET": _hmget,
    "HGETALL": _hgetall,
    "HKEYS": _hkeys,
    "HSCAN": _hscan,
    "HLEN": _hlen,
    "SCAN": _scan,
    "SADD": _sadd,
    "SREM": _srem,
    "SMEMBERS": _smembers,
    "GET": _get,
    "MGET": _mget,
    "GETRANGE": _getrange,
    "SET": _set,
    "APPEND": _append,
    "UNLINK": _unlink,
}
