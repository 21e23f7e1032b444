"""A Redis that loses what was written to it: its last seconds, or everything, while workers count."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from app.local import local_redis
from tests.faults.forwarder import forwarder
from tests.faults.redis_state import (
    Counting,
    assert_rebuilt,
    assert_several_batches_missing,
    reasons,
    rebuilt,
    state_offsets,
    wait_until_counting,
)
from tests.integration.deployment import Deployment

PARTITIONS = 4
RESUMED_S_MAX = 15.0  # after an outage: at most 5 s until the next try, then a session's start
REBUILT_S_MAX = 60.0


@pytest.mark.timeout(300)
def test_redis_killed_without_its_last_seconds_is_folded_on_from_where_it_fell_back_to(
    counting: Counting, chance: random.Random, seed: int, tmp_path: Path
) -> None:
    """kill -9, and the append-only file ends where it ended some seconds before, in the middle of a command."""
    data = tmp_path / "redis"
    with local_redis(data, auto_aof_rewrite_percentage=0) as server, counting(server.url) as deployment:
        with deployment.load(seed=seed):
            for turn in range(3):
                wait_until_counting(deployment, server.url)
                log = next((data / "appendonlydir").glob("*.incr.aof"))
                kept_bytes = log.stat().st_size
                count_several_batches(deployment, server.url, chance)
                server.kill()
                os.truncate(log, kept_bytes - chance.randint(0, 200))
                on_disk = state_on_disk(data, tmp_path / f"copy-{turn}", deployment)
                assert_several_batches_missing(on_disk, deployment.settings)
                server.start()
        deployment.finish()
        assert_rebuilt(deployment)


def count_several_batches(deployment: Deployment, url: str, chance: random.Random) -> None:
    """Two or more on each partition."""
    for _ in range(2):
        wait_until_counting(deployment, url)
        time.sleep(chance.uniform(0, 1))


def state_on_disk(data: Path, copy: Path, deployment: Deployment) -> dict[tuple[str, int], int]:
    """How far the state reaches that a Redis will load, seen in a copy of it: the worker would move it on at once."""
    shutil.copytree(data, copy)
    with local_redis(copy) as look:
        return state_offsets(look.url, deployment.settings)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("down_s", [0, 10])
def test_redis_restarted_empty_is_rebuilt(
    counting: Counting, seed: int, down_s: int, record_property: Callable[[str, object], None]
) -> None:
    """Without an append-only file. After 0 s it is back before a worker finds its connection broken."""
    with local_redis(appendonly=False) as server, counting(server.url) as deployment:
        with deployment.load(seed=seed):
            wait_until_counting(deployment, server.url)
            server.kill()
            time.sleep(down_s)
            server.start()
            resumed_s = wait_until_counting(deployment, server.url)
            record_property("resumed_s", round(resumed_s, 1))
            assert resumed_s < RESUMED_S_MAX
            time.sleep(2)
        deployment.finish()
        assert_rebuilt(deployment)


@pytest.mark.timeout(240)
def test_counting_resumes_within_seconds_of_an_outage_that_lost_nothing(
    counting: Counting, seed: int, record_property: Callable[[str, object], None]
) -> None:
    with local_redis() as server, counting(server.url) as deployment:
        with deployment.load(seed=seed):
            wait_until_counting(deployment, server.url)
            server.stop()
            time.sleep(10)
            server.start()
            resumed_s = wait_until_counting(deployment, server.url)
            record_property("resumed_s", round(resumed_s, 1))
            assert resumed_s < RESUMED_S_MAX
        deployment.finish()
        assert any("Redis" in why for why in reasons(deployment))
        assert not rebuilt(deployment, "counter")


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_redis_emptied_in_flight_is_rebuilt(counting: Counting, chance: random.Random, seed: int) -> None:
    """FLUSHALL breaks no connection: what tells the workers is the epoch that is gone, or the WATCH that fails."""
    with local_redis() as server, counting(server.url) as deployment:
        with deployment.load(seed=seed), redis.Redis.from_url(server.url, socket_timeout=10) as client:
            for _ in range(2):
                wait_until_counting(deployment, server.url)
                time.sleep(chance.uniform(0, 1))
                emptied = client.pipeline(transaction=True).flushall().dbsize().execute()
                assert emptied == [True, 0]
            wait_until_counting(deployment, server.url)
        deployment.finish()
        assert any(
            "its state was emptied" in why or "while its batch was written" in why for why in reasons(deployment)
        )
        assert_rebuilt(deployment)


@pytest.mark.timeout(240)
def test_twenty_thousand_events_are_rebuilt_in_seconds(
    counting: Counting, seed: int, record_property: Callable[[str, object], None]
) -> None:
    with local_redis() as server, counting(server.url) as deployment:
        assert deployment.generate("--count", "20000", "--seed", str(seed)).wait(60) == 0
        deployment.assert_exact()
        with deployment.load(rate=50, seed=seed + 1), redis.Redis.from_url(server.url) as client:
            client.flushall()
            begun_s = time.monotonic()
            deployment.wait_until(
                lambda: rebuilt(deployment, "counter") == set(range(PARTITIONS)), "all is rebuilt", REBUILT_S_MAX
            )
            record_property("rebuilt_s", round(time.monotonic() - begun_s, 1))
        deployment.finish()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_master_dead", [True, False])
def test_a_replica_promoted_without_the_masters_last_seconds_is_folded_on(
    counting: Counting, chance: random.Random, seed: int, is_master_dead: bool
) -> None:
    """The replication link is cut first, so what the replica lacks never reaches it. Where the master lives on, the workers
    leave it for the replica, as after a failover by an operator."""
    with (
        local_redis() as master,
        forwarder(master.port) as link,
        local_redis(replicaof=f"127.0.0.1 {link.port}") as replica,
        forwarder(master.port) as address,
        counting(address.redis_url) as deployment,
        redis.Redis.from_url(replica.url, socket_timeout=10) as client,
    ):
        deployment.wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows")
        with deployment.load(seed=seed):
            wait_until_counting(deployment, master.url)
            link.cut()
            count_several_batches(deployment, master.url, chance)
            if is_master_dead:
                master.kill()
            address.cut()
            client.replicaof("NO", "ONE")
            promoted = state_offsets(replica.url, deployment.settings)
            assert_several_batches_missing(promoted, deployment.settings)
            address.lead_to(replica.port)
            wait_until_counting(deployment, replica.url)
        deployment.finish()
        assert_rebuilt(deployment)
