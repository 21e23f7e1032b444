"""onecount on a Redis Cluster: its masters die under load, with and without their last writes at the replica."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.crc import key_slot

from app.engine.ledger import NEXT, ledger_key
from app.local import LocalRedisCluster, local_redis_cluster
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed

Offsets = dict[str, int]  # by input topic

PARTITIONS = 4
WORKERS = (("counter", 0), ("counter", 1), ("aggregator", 0))
LOST_S = 2.0  # of writes that a replica misses


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRedisCluster]:
    with local_redis_cluster() as running:
        yield running


@pytest.fixture
def deployment(
    services: Services, cluster: LocalRedisCluster, topic_prefix: str, tmp_path: Path
) -> Iterator[Deployment]:
    """onecount with its state on the cluster, alone there: two counters and an aggregator, which have begun."""
    cluster.wait_until_healthy()
    for master in cluster.masters:
        cluster.ask(master, "FLUSHALL")
    with deployed(services.bootstrap, cluster.url, topic_prefix, tmp_path) as running:
        for role, slot in WORKERS:
            running.start(role, slot)
        running.wait_until(
            lambda: [len(running.owned(*worker)) for worker in WORKERS] == [2, 2, PARTITIONS],
            "all own their partitions",
        )
        yield running


@contextmanager
def counting(cluster: LocalRedisCluster, deployment: Deployment, seed: int) -> Iterator[None]:
    """Load, as long as the block lasts; it begins when every partition has been counted and stored."""
    with deployment.load(seed=seed):
        deployment.wait_until(
            lambda: all(all(offsets_on(cluster, deployment, master, master).values()) for master in cluster.masters),
            "every ledger has offsets",
        )
        yield


def ledgers(deployment: Deployment) -> list[str]:
    """The keys of all ledgers."""
    return [
        ledger_key(deployment.settings.tag(stage), partition) for stage in ("c", "a") for partition in range(PARTITIONS)
    ]


def busiest_master(cluster: LocalRedisCluster, deployment: Deployment) -> int:
    """The node that most of the counters' ledgers lie on."""
    keys = [ledger_key(deployment.settings.tag("c"), partition) for partition in range(PARTITIONS)]
    return Counter(cluster.master_of(key_slot(key.encode())) for key in keys).most_common(1)[0][0]


def offsets_on(cluster: LocalRedisCluster, deployment: Deployment, node: int, master: int) -> dict[str, Offsets]:
    """How far the ledgers that `master` serves are on a node, which may be its replica."""
    with cluster.client(node) as client:
        client.execute_command("READONLY")
        return {
            key: {
                name.decode().removeprefix(NEXT): int(value)
                for name, value in client.hgetall(key).items()
                if name.startswith(NEXT.encode())
            }
            for key in ledgers(deployment)
            if cluster.master_of(key_slot(key.encode())) == master
        }


def rebuilt(deployment: Deployment) -> list[int]:
    """The partitions of which any counter said that it folds more than one batch again."""
    events = [event for slot in (0, 1) for event in deployment.events("counter", slot)]
    return sorted({partition for event in events for partition in event.get("rebuilding", [])})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_cluster_whose_masters_die_one_after_the_other_counts_exactly(
    cluster: LocalRedisCluster, deployment: Deployment, chance: random.Random, seed: int
) -> None:
    with counting(cluster, deployment, seed):
        for _ in range(2):
            time.sleep(chance.uniform(0, 4))
            master = busiest_master(cluster, deployment)
            cluster.kill(master)
            cluster.wait_until_replaced(master)
            time.sleep(chance.uniform(1, 4))
            cluster.start(master)
            cluster.wait_until_healthy()
            assert master not in cluster.masters
    deployment.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_replica_promoted_without_its_last_writes_counts_exactly(
    cluster: LocalRedisCluster, deployment: Deployment, chance: random.Random, seed: int
) -> None:
    with counting(cluster, deployment, seed):
        master = busiest_master(cluster, deployment)
        replica = cluster.replica_of(master)
        cluster.cut(replica)
        kept = offsets_on(cluster, deployment, replica, master)
        time.sleep(LOST_S + chance.uniform(0, 1))
        deployment.wait_until(
            lambda: all(kept[key] != had for key, had in offsets_on(cluster, deployment, master, master).items()),
            "every partition goes on at the master",
        )
        assert kept == offsets_on(cluster, deployment, replica, master), "the replica is cut off"
        cluster.kill(master)
        cluster.wait_until_replaced(master)
        assert replica in cluster.masters
        cluster.mend(replica)
        cluster.start(master)
        cluster.wait_until_healthy()
        time.sleep(chance.uniform(1, 4))
    deployment.finish()
    assert any(ledger_key(deployment.settings.tag("c"), partition) in kept for partition in rebuilt(deployment)), (
        "a partition that lost several batches was read back"
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_partitions_whose_slots_move_to_other_masters_count_exactly(
    cluster: LocalRedisCluster, deployment: Deployment, chance: random.Random, seed: int
) -> None:
    with counting(cluster, deployment, seed):
        for key in chance.sample(ledgers(deployment), 3):
            slot = key_slot(key.encode())
            to = chance.choice([master for master in cluster.masters if master != cluster.master_of(slot)])
            cluster.move_slot(slot, to)
            cluster.wait_until_healthy()
            assert cluster.master_of(slot) == to
            time.sleep(chance.uniform(0, 3))
    deployment.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_state_that_all_masters_lost_is_rebuilt(cluster: LocalRedisCluster, deployment: Deployment, seed: int) -> None:
    with counting(cluster, deployment, seed):
        deployment.empty_redis()
        time.sleep(3)
    deployment.finish()
    assert rebuilt(deployment) == list(range(PARTITIONS))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_operator_checks_rebuilds_and_resets_on_a_cluster(
    cluster: LocalRedisCluster, deployment: Deployment, seed: int
) -> None:
    with counting(cluster, deployment, seed):
        assert "fit for counting" in onecount(deployment, "check")
    for worker in deployment.running[: len(WORKERS)]:
        assert deployment.stop(worker) == 0
    keys = sum(cluster.ask(master, "DBSIZE") for master in cluster.masters)
    assert f"{keys:,} keys removed" in onecount(deployment, "rebuild")
    assert [cluster.ask(master, "DBSIZE") for master in cluster.masters] == [0, 0, 0]
    workers = [deployment.start(*worker) for worker in WORKERS]
    deployment.assert_exact()
    for worker in workers:
        assert deployment.stop(worker) == 0
    assert "created" in onecount(deployment, "reset", "--yes")
    assert [cluster.ask(master, "DBSIZE") for master in cluster.masters] == [0, 0, 0]
    for worker in WORKERS:
        deployment.start(*worker)
    deployment.finish()


def onecount(deployment: Deployment, *arguments: str) -> str:
    """What a command says that must succeed."""
    found = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env=os.environ | deployment.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout
