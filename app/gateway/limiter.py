"""Rate limits by key, over all gateways: token buckets in Redis, from which each gateway takes a tenth of a second's worth at
once. So most requests ask nobody.
"""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from app.engine.store import ClusterStore, RedisStore, StoreRefused, StoreUnavailable, open_store
from app.gateway.config import Rate
from app.settings import Settings

LEASE_S: Final = 0.1
TIMEOUT_S: Final = 0.25
BLIND_S: Final = 1.0  # without Redis it is asked again only after so long
# Takes `wanted` tokens, or what there is, or none if that is less than `needed`. Returns how many, and the wait (ms) until
# `needed` ones are there. By Redis's clock, so that gateways' clocks do not matter.
_TAKE: Final = b"""
local per_s, burst, needed, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call("HMGET", KEYS[1], 'tokens', 'at')
local tokens = math.min(burst, (tonumber(held[1]) or burst) + math.max(0, now - (tonumber(held[2]) or now)) * per_s / 1000)
local taken = 0
if tokens >= needed then taken = math.min(math.floor(tokens), wanted) end
redis.call("HSET", KEYS[1], 'tokens', tostring(tokens - taken), 'at', now)
redis.call("PEXPIRE", KEYS[1], math.ceil(burst / per_s * 1000) + 1000)
return {taken, math.ceil(math.max(0, needed - tokens) / per_s * 1000)}
"""
_log = structlog.get_logger()


class LimiterUnavailable(Exception):
    """Redis does not answer, and ONECOUNT_GATEWAY_LIMITER_FAILS is closed."""


class Limiter:
    """The buckets of all keys. Redis is asked by one thread; nothing is asked twice, as a retry would take twice."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url.get_secret_value()
        self._prefix = f"{settings.tag('gateway')}:rate:"
        self._is_open = settings.gateway_limiter_fails == "open"
        self._thread = ThreadPoolExecutor(1, "limiter")
        self._store: RedisStore | ClusterStore | None = None
        self._blind_until_s = 0.0
        self._leases: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.failures = 0

    async def take(self, name: str, rate: Rate, events: int) -> float:
        """Takes so many tokens: 0, or the seconds after which there will be enough. Raises `LimiterUnavailable`."""
        if self._leased(name, events):
            return 0.0
        async with self._locks.setdefault(name, asyncio.Lock()):
            if self._leased(name, events):  # of what another request has fetched meanwhile
                return 0.0
            needed = events - self._leases.get(name, 0)
            wanted = max(needed, math.ceil(rate.per_s * LEASE_S))
            try:
                taken, wait_ms = await self._ask(name, rate, needed, wanted)
            except (StoreUnavailable, StoreRefused) as error:
                return self._without_redis(error)
            self._leases[name] = self._leases.get(name, 0) + taken
            return 0.0 if self._leased(name, events) else max(wait_ms, 1) / 1000

    def _leased(self, name: str, events: int) -> bool:
        left = self._leases.get(name, 0) - events
        if left < 0:
            return False
        self._leases[name] = left
        return True

    async def _ask(self, name: str, rate: Rate, needed: int, wanted: int) -> tuple[int, int]:
        if time.monotonic() < self._blind_until_s:
            raise StoreUnavailable("Redis: it did not answer a moment ago")
        command = ("EVAL", _TAKE, 1, f"{self._prefix}{name}", rate.per_s, rate.burst, needed, wanted)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, command)

    def _run(self, command: tuple[str | bytes | int, ...]) -> tuple[int, int]:
        if self._store is None:
            self._store = open_store(self._url, TIMEOUT_S)
        taken, wait_ms = self._store.run([command])[0]
        return taken, wait_ms

    def _without_redis(self, error: Exception) -> float:
        if time.monotonic() >= self._blind_until_s:
            self.failures += 1
            self._blind_until_s = time.monotonic() + BLIND_S
            _log.warning("no rate limits", why=str(error), lets_in=self._is_open)
        if not self._is_open:
            raise LimiterUnavailable
        return 0.0

    def close(self) -> None:
        """Ends the thread and the connection."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._store is not None:
            self._store.close()
