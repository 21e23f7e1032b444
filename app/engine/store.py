"""Redis as the engine sees it: batches of commands on one connection, and a guarded write.

redis-py makes the connection (TLS, ACL, timeouts) with its retries off, since a retried INCR, pipeline or MULTI runs
twice. Commands are packed by hiredis: the many-member commands of a batch are packed there several times faster than
by redis-py.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

Command = Sequence[Any]


class StoreUnavailable(Exception):
    """Redis did not answer, so nothing may be counted until it does; whether the last write was done is unknown."""


class StoreRefused(Exception):
    """Redis answered with an error that retrying does not mend (its settings, its rights, its memory)."""


class Store(Protocol):
    """What the engine needs of a store; tests run the stages on one in memory."""

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies of the commands, in order."""

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """All commands in one MULTI/EXEC; False, with nothing written, if a key under WATCH has changed since."""


class RedisStore:
    """A `Store` on one Redis server. Not thread-safe: one owner, one connection."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._redis = redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2
        )
        self._connection: redis.Connection | None = None

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """The replies in order. Raises `StoreUnavailable` for a lost connection or a timeout, `StoreRefused` for an
        error reply.
        """
        packed = [hiredis.pack_command(tuple(command)) for command in commands]
        if not packed:
            return []
        try:
            connection = self._connect()
            connection.send_packed_command([b"".join(packed)], check_health=False)
            replies = []
            refused: redis.ResponseError | None = None
            for _ in packed:
                try:
                    replies.append(connection.read_response(disable_decoding=True))
                except (
                    redis.ResponseError
                ) as error:  # the rest must still be read, or the next call would read this one's replies
                    refused = refused or error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self.close()
            raise StoreUnavailable(f"Redis: {error}") from error
        if refused is not None:
            self.close()
            raise _refusal(refused) from refused
        return replies

    def guarded_write(self, commands: Iterable[Command]) -> bool:
        """One MULTI/EXEC, refused (False) if a key that this connection WATCHes has changed."""
        return self.run([("MULTI",), *commands, ("EXEC",)])[-1] is not None

    def close(self) -> None:
        """Drops the connection, and with it every WATCH."""
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


def _refusal(error: redis.ResponseError) -> Exception:
    text = str(error)
    if isinstance(error, redis.exceptions.BusyLoadingError) or text.startswith(
        ("LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN", "CLUSTERDOWN", "BUSY")
    ):
        return StoreUnavailable(f"Redis: {text}")
    if text.startswith(("OOM", "EXECABORT")):
        return StoreUnavailable(
            f"Redis is out of memory or refuses writes: {text}; raise maxmemory, the worker resumes by itself"
        )
    return StoreRefused(f"Redis: {text}")


def unsafe_settings(store: RedisStore) -> list[str]:
    """What in the server's configuration would lose state; empty where all is well.

    Any maxmemory-policy but noeviction would evict counted ids and touches, and so change counts without a trace.
    """
    reply = store.run([("CONFIG", "GET", "maxmemory-policy")])[0]
    name = dict(zip(reply[::2], reply[1::2], strict=True)).get(b"maxmemory-policy", b"").decode()
    if name != "noeviction":
        return [f"maxmemory-policy is {name or 'unknown'}: set it to noeviction, or counted events would be evicted"]
    return []
