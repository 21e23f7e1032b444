"""Redis as the engine sees it: batches of commands, and a guarded write; on one server, or on a Redis Cluster.

redis-py makes the connections (TLS, ACL, timeouts) with its retries off, since a retried INCR, pipeline or MULTI runs
twice. Commands are packed by hiredis: the many-member commands of a batch are packed there several times faster than
by redis-py.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

Command = Sequence[Any]
_PIECE_BYTES: Final = 1 << 18


class StoreUnavailable(Exception):
    """Redis did not answer, so nothing may be counted until it does; whether the last write was done is unknown."""


class StoreRefused(Exception):
    """Redis answered with an error that retrying does not mend (its settings)."""


class Store(Protocol):
    """What the engine needs of a store; tests run the stages on one in memory."""

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies of the commands, in order."""

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """All commands in one MULTI/EXEC; False, with nothing written, if a key under WATCH has changed since."""


class RedisStore:
    """A `Store` on one Redis server. Not thread-safe: one owner, one connection."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.address = urlsplit(url).netloc.rpartition("@")[2] or urlsplit(url).path
        self._redis = redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2
        )
        self._connection: redis.Connection | None = None

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies in order. Raises `StoreUnavailable` for a lost connection or a timeout, `StoreRefused` for an
        error reply.
        """
        return self.receive(self.send(commands))

    def send(self, commands: Iterable[Command]) -> int:
        """The first half of `run`: how many replies are to be received. Errors: as for `run`."""
        packed = [hiredis.pack_command(tuple(command)) for command in commands]
        if packed:
            try:
                self._connect().send_packed_command(_in_pieces(packed), check_health=False)
            except (redis.RedisError, OSError) as error:
                raise self._failed(error) from error
        return len(packed)

    def receive(self, count: int) -> list[Any]:
        """The second half of `run`: the replies to what was sent. Errors: as for `run`."""
        try:
            connection = self._connect()
            return [connection.read_response(disable_decoding=True) for _ in range(count)]
        except (redis.RedisError, OSError) as error:
            raise self._failed(error) from error

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """One MULTI/EXEC, refused (False) if a key that this connection WATCHes has changed."""
        return self.run([("MULTI",), *commands, ("EXEC",)])[-1] is not None

    def servers(self) -> "list[RedisStore]":
        """A store for each server that holds keys, for what is asked of servers and not of keys."""
        return [self]

    def close(self) -> None:
        """Drops the connection, and with it every WATCH and every reply that was not received."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _connect(self) -> redis.Connection:
        if self._connection is None:
            connection = self._redis.connection_pool.get_connection()
            if connection.is_connected:
                connection.disconnect()
            connection.connect()
            self._connection = connection
        return self._connection

    def _failed(self, error: Exception) -> Exception:
        self.close()
        if isinstance(error, redis.AuthenticationError):
            return StoreUnavailable(
                f"Redis: {error}: see that the user in ONECOUNT_REDIS_URL and ONECOUNT_REDIS_PASSWORD are right"
            )
        return _refusal(error) if isinstance(error, redis.ResponseError) else StoreUnavailable(f"Redis: {error}")


def _in_pieces(packed: list[bytes]) -> Iterator[bytes]:
    """Packed commands in a row, joined to pieces that are worth a system call; a large one stays as it is, without a copy."""
    joined: list[bytes] = []
    size_bytes = 0
    for command in packed:
        if size_bytes + len(command) > _PIECE_BYTES:
            yield b"".join(joined)
            joined, size_bytes = [], 0
        joined.append(command)
        size_bytes += len(command)
    yield b"".join(joined)


class _Shard(NamedTuple):
    """The hash slots `first` to `last`, and the URL of the master that serves them."""

    first: int
    last: int
    url: str


class ClusterStore:
    """A `Store` on a Redis Cluster, for commands whose keys share a hash tag: a partition's. Not thread-safe.

    Each hash slot in use has a connection of its own to the slot's master. One a node would not do: a MULTI holds keys of one
    slot only, and its EXEC ends every WATCH of its connection, so that a second partition's MULTI on it would be unguarded.

    Whatever fails drops the topology and all connections. Nothing is sent again and no redirection is followed: the
    caller begins anew, with the topology of then.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._urls = urls
        self._timeout_s = timeout_s
        self._shards: list[_Shard] = []
        self._by_slot: dict[int, RedisStore] = {}
        self._by_url: dict[str, RedisStore] = {}

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies in order; the slots' masters work side by side. Errors: as for `RedisStore`."""
        listed = list(commands)
        places: dict[int, list[int]] = {}
        parts: dict[int, list[Command]] = {}
        for place, command in enumerate(listed):
            for slot, part in self._by_slots(command):
                places.setdefault(slot, []).append(place)
                parts.setdefault(slot, []).append(part)
        replies: list[Any] = [None] * len(listed)
        for slot, found in self._exchange(parts).items():
            for place, reply in zip(places[slot], found, strict=True):
                replies[place] = reply
        return replies

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """One MULTI/EXEC a partition, each refused if its WATCHed ledger has changed; False if any was.

        Others may be written then: each moves a partition's state together with its ledger, and is whole by itself.
        """
        parts: dict[int, list[Command]] = {}
        for command in commands:
            parts.setdefault(_slot(command[1]), [("MULTI",)]).append(command)
        for part in parts.values():
            part.append(("EXEC",))
        return all(replies[-1] is not None for replies in self._exchange(parts).values())

    def servers(self) -> list[RedisStore]:
        """A store for each master that serves slots. Raises `StoreUnavailable`."""
        for shard in self._topology():
            if shard.url not in self._by_url:
                self._by_url[shard.url] = RedisStore(shard.url, self._timeout_s)
        return list(self._by_url.values())

    def close(self) -> None:
        """Drops all connections, and the topology."""
        for connected in (*self._by_slot.values(), *self._by_url.values()):
            connected.close()
        self._by_slot, self._by_url, self._shards = {}, {}, []

    def _by_slots(self, command: Command) -> list[tuple[int, Command]]:
        """Where a command goes to, in which parts."""
        if command[0] == "UNWATCH":
            return [(slot, command) for slot in self._by_slot]
        if command[0] == "WATCH":
            return [(_slot(key), ("WATCH", key)) for key in command[1:]]
        return [(_slot(command[3 if command[0] == "EVAL" else 1]), command)]

    def _exchange(self, parts: dict[int, list[Command]]) -> dict[int, list[Any]]:
        """The replies by slot. Everything is sent before anything is received."""
        try:
            counts = {slot: self._at(slot).send(part) for slot, part in parts.items()}
            return {slot: self._at(slot).receive(count) for slot, count in counts.items()}
        except (StoreUnavailable, StoreRefused):
            self.close()
            raise

    def _at(self, slot: int) -> RedisStore:
        if slot not in self._by_slot:
            url = next((shard.url for shard in self._topology() if shard.first <= slot <= shard.last), None)
            if url is None:
                raise StoreUnavailable(f"Redis Cluster: no node serves hash slot {slot}")
            self._by_slot[slot] = RedisStore(url, self._timeout_s)
        return self._by_slot[slot]

    def _topology(self) -> list[_Shard]:
        """Who serves which slots, as the first node says that answers."""
        failure: StoreUnavailable | None = None
        for url in self._urls:
            if self._shards:
                break
            node = RedisStore(url, self._timeout_s)
            try:
                for first, last, (host, port, *_), *_ in node.run([("CLUSTER", "SLOTS")])[0]:
                    self._shards.append(_Shard(first, last, _at_node(url, host, port)))
            except StoreUnavailable as error:
                failure = error
            finally:
                node.close()
        if not self._shards:
            raise failure or StoreUnavailable("Redis Cluster: no slots are served")
        return self._shards


def open_store(url: str, timeout_s: float) -> RedisStore | ClusterStore:
    """A store on what answers at the URL, which may name several nodes of a cluster (`redis://one:6379,two:6379`).

    The first that answers says whether it is a cluster. Raises `StoreUnavailable` if none does, `StoreRefused` where several
    hosts are named and it is none.
    """
    urls = _each_node(url)
    failure: StoreUnavailable | None = None
    for each in urls:
        server = RedisStore(each, timeout_s)
        try:
            if b"cluster_enabled:1" in server.run([("INFO", "cluster")])[0]:
                server.close()
                return ClusterStore(urls, timeout_s)
            if len(urls) > 1:
                raise StoreRefused(f"Redis: several nodes are named, but {server.address} is not one of a cluster")
            return server
        except StoreUnavailable as error:
            failure = error
    assert failure is not None
    raise failure


def _slot(key: str | bytes) -> int:
    return key_slot(key if isinstance(key, bytes) else key.encode())


def _each_node(url: str) -> list[str]:
    """One URL for each host that a URL names, with the same user, password and database."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [url]
    return [urlunsplit(parts._replace(netloc=user + at + host.strip())) for host in hosts.split(",") if host.strip()]


def _at_node(url: str, host: bytes | None, port: int) -> str:
    """The URL of a node that another one, at `url`, names; a host that it does not know is its own."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    name = (host or b"").decode() or parts.hostname or "localhost"
    return urlunsplit(parts._replace(netloc=f"{user}{at}{f'[{name}]' if ':' in name else name}:{port}"))


# What passes by itself (a failover, slots on the move, a restart).
_PASSING: Final = ("LOADING", "MASTERDOWN", "BUSY", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
# What passes as soon as somebody mends it, and how; the worker resumes by itself.
_MENDED: Final = {
    "READONLY": "the address leads to a replica: point ONECOUNT_REDIS_URL at its master, or promote it",
    "NOPERM": "the user lacks a right: give it what deploy/redis.acl lists",
    "OOM": "its memory is full: raise maxmemory",
    "EXECABORT": "it refuses writes: see its log",
    "MISCONF": "it cannot write to its disk: make room there",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write: start them",
}


def _refusal(error: redis.ResponseError) -> Exception:
    # redis-py cuts the code off the text of the errors it knows
    code, text = getattr(error, "status_code", None), str(error)
    if code is None:
        code = text.partition(" ")[0]
    elif not text.startswith(code):
        text = f"{code} {text}"
    if code in _PASSING:
        return StoreUnavailable(f"Redis: {text}")
    if code in _MENDED:
        return StoreUnavailable(f"Redis: {text}; {_MENDED[code]}. The worker waits and resumes by itself")
    return StoreRefused(f"Redis: {text}")


class Server(NamedTuple):
    """What one server says of itself (INFO), and how long that took."""

    address: str
    info: dict[str, str]
    latency_s: float

    def number(self, name: str) -> int:
        """One of its numbers, e.g. `used_memory`; 0 where it does not tell."""
        return int(self.info.get(name, 0))


def look_at(store: RedisStore | ClusterStore) -> list[Server]:
    """Each server that holds keys. Raises `StoreUnavailable`, also for a replica."""
    found = []
    for server in store.servers():
        begun = time.perf_counter()
        said = server.run([("INFO",)])[0]
        latency_s = time.perf_counter() - begun
        info = dict(line.split(":", 1) for line in said.decode().splitlines() if ":" in line)
        if info.get("role") == "slave":
            raise StoreUnavailable(f"Redis at {server.address} is a replica; {_MENDED['READONLY']}")
        found.append(Server(server.address, info, latency_s))
    return found


def unsafe_settings(servers: Iterable[Server]) -> list[str]:
    """What in the servers' settings would lose state, or has lost some; empty where all is well.

    Any maxmemory-policy but noeviction would evict counted ids and touches, and so change counts without a trace.
    """
    found = []
    for server in servers:
        name, evicted = server.info.get("maxmemory_policy", "unknown"), server.number("evicted_keys")
        if name != "noeviction":
            found.append(
                f"{server.address}: maxmemory-policy is {name}: set it to noeviction, or counted events would be evicted"
            )
        if evicted:
            found.append(
                f"{server.address}: {evicted} keys were evicted since it started, so counts may be wrong: stop all workers, set "
                "maxmemory-policy to noeviction, then run `onecount reset` and, in redis-cli, CONFIG RESETSTAT"
            )
    return found
