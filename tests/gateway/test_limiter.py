"""Rates hold over all gateways together, on a real Redis, and with no more rights there than deploy/redis.acl gives."""

import asyncio
import time
from pathlib import Path

import pytest
import redis

from app.gateway.config import Rate
from app.gateway.limiter import Limiter
from app.local import local_redis
from app.settings import Settings
from tests.conftest import Services

ACL = Path(__file__).resolve().parents[2] / "deploy" / "redis.acl"


def limiters(url: str, namespace: str, count: int) -> list[Limiter]:
    return [Limiter(Settings(redis_url=url, namespace=namespace)) for _ in range(count)]  # type: ignore[arg-type]


def test_two_gateways_share_a_rate(services: Services, topic_prefix: str) -> None:
    rate = Rate(per_s=500, burst=1_000)

    async def sends(limiter: Limiter, until_s: float) -> int:
        taken = 0
        while time.monotonic() < until_s:
            wait_s = await limiter.take("key.shop", rate, 7)
            taken += 0 if wait_s else 7
            await asyncio.sleep(min(wait_s, 0.02))
        return taken

    async def both() -> tuple[int, float]:
        begun = time.monotonic()
        pair = limiters(services.redis_url, topic_prefix[-20:], 2)
        taken = sum(await asyncio.gather(*(sends(each, begun + 2) for each in pair)))
        took_s = time.monotonic() - begun
        assert [each.failures for each in pair] == [0, 0]
        for each in pair:
            each.close()
        return taken, took_s

    taken, took_s = asyncio.run(both())
    allowed = rate.burst + rate.per_s * took_s
    assert 0.8 * allowed < taken <= allowed


def test_a_large_request_gets_its_turn_and_others_have_buckets_of_their_own(
    services: Services, topic_prefix: str
) -> None:
    rate = Rate(per_s=1_000, burst=1_000)

    async def case() -> None:
        (limiter,) = limiters(services.redis_url, topic_prefix[-20:], 1)
        assert await limiter.take("a", rate, 1_000) == 0
        wait_s = await limiter.take("a", rate, 900)
        assert 0.5 < wait_s <= 0.9
        assert await limiter.take("b", rate, 1_000) == 0
        await asyncio.sleep(wait_s)
        assert await limiter.take("a", rate, 900) == 0, "it waited as long as it was told"
        limiter.close()

    asyncio.run(case())


def test_the_rights_of_the_acl_file_are_enough(tmp_path: Path) -> None:
    line = next(line for line in ACL.read_text().splitlines() if line.startswith("user onecount-gateway "))
    with local_redis(tmp_path) as server, redis.Redis.from_url(server.url) as admin:
        words = line.replace("#SHA256_OF_THE_GATEWAYS_PASSWORD", ">secret").split()
        admin.execute_command("ACL", "SETUSER", *words[1:])
        url = server.url.replace("redis://", "redis://onecount-gateway:secret@")

        async def case() -> None:
            limiter = Limiter(Settings(redis_url=url))  # type: ignore[arg-type]
            assert await limiter.take("key.shop", Rate(10, 1_000), 1_000) == 0
            assert await limiter.take("key.shop", Rate(10, 1_000), 1_000) > 1
            assert limiter.failures == 0
            limiter.close()

        asyncio.run(case())
        with redis.Redis.from_url(url) as user, pytest.raises(redis.exceptions.NoPermissionError):
            user.get("{c0}:ledger")
