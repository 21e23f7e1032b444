"""The local Redis Cluster fails over as a real one does, and the engine's store on it keeps what it promises."""

import time
from collections.abc import Callable, Iterator

import pytest
from redis.crc import key_slot

from app.engine.maintenance import remove_keys
from app.engine.store import (
    ClusterStore,
    RedisStore,
    StoreRefused,
    StoreUnavailable,
    look_at,
    open_store,
    unsafe_settings,
)
from app.local import LocalRedisCluster, LocalServiceError, local_redis, local_redis_cluster

pytestmark = pytest.mark.integration

TIMEOUT_S = 5.0
TAKEOVER_S = 30.0
MANUAL_S = 6.0  # Redis gives a manual failover up after 5 s, which it often does while its nodes' links are young
TAGS = [f"{{c{partition}}}" for partition in range(8)]  # they lie on all three masters
LEDGERS = [f"{tag}:ledger" for tag in TAGS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRedisCluster]:
    with local_redis_cluster() as running:
        yield running


@pytest.fixture
def store(cluster: LocalRedisCluster) -> Iterator[ClusterStore]:
    cluster.wait_until_healthy()
    found = open_store(cluster.url, TIMEOUT_S)
    assert isinstance(found, ClusterStore)
    remove_keys(found, "*")
    yield found
    found.close()


def writes() -> list[tuple[object, ...]]:
    """A batch of all partitions: two keys each."""
    return [
        command for tag in TAGS for command in (("HINCRBY", f"{tag}:ledger", "next", 1), ("APPEND", f"{tag}:s", b"x"))
    ]


def offsets(store: ClusterStore) -> list[bytes | None]:
    return store.run([("HGET", key, "next") for key in LEDGERS])


def masters(cluster: LocalRedisCluster) -> list[int]:
    """The masters; none while the nodes do not agree on them."""
    try:
        return cluster.masters
    except LocalServiceError:
        return []


def is_within(timeout_s: float, holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.05)
    return True


def wait_until(holds: Callable[[], bool]) -> None:
    assert is_within(TAKEOVER_S, holds)


def fail_over(cluster: LocalRedisCluster, replica: int) -> None:
    """Makes a replica the master of its slots; asks for it again where Redis gave it up."""
    for _ in range(5):
        cluster.wait_until_healthy()
        cluster.ask(replica, "CLUSTER FAILOVER")
        if is_within(MANUAL_S, lambda: replica in masters(cluster)):
            return
    raise AssertionError(f"node {replica} did not become a master")


def test_replies_of_many_partitions_come_in_the_order_of_their_commands(store: ClusterStore) -> None:
    store.run([("HSET", key, "next", number) for number, key in enumerate(LEDGERS)])
    replies = store.run([("UNWATCH",), ("WATCH", *LEDGERS), *(("HMGET", key, "next", "none") for key in LEDGERS)])
    assert replies[1] == b"OK"
    assert replies[2:] == [[str(number).encode(), None] for number in range(len(LEDGERS))]


def test_a_guarded_write_leaves_out_the_partition_that_changed_and_no_other(
    cluster: LocalRedisCluster, store: ClusterStore
) -> None:
    """Eight partitions on three nodes: the EXEC of one must not end the WATCH of another on its node."""
    other = open_store(cluster.url, TIMEOUT_S)
    for taken in LEDGERS:
        store.run([("UNWATCH",), ("WATCH", *LEDGERS)])
        before = offsets(store)
        other.run([("HINCRBY", taken, "epoch", 1)])
        assert not store.guarded_write(writes())
        moved = [key for key, was, now in zip(LEDGERS, before, offsets(store), strict=True) if was != now]
        assert moved == [key for key in LEDGERS if key != taken]
    other.close()
    store.run([("UNWATCH",), ("WATCH", *LEDGERS)])
    assert store.guarded_write(writes())


def test_a_large_hash_is_looked_through_in_parts(store: ClusterStore) -> None:
    users = {b"shop\x1fu%d" % number: b"state %d" % number for number in range(3_000)}
    store.run([("HSET", "{c0}:conv:0", *(part for pair in users.items() for part in pair))])
    found, cursor, calls = {}, 0, 0
    while cursor or not calls:
        reply, pairs = store.run([("HSCAN", "{c0}:conv:0", cursor, "COUNT", 1_000)])[0]
        cursor, calls = int(reply), calls + 1
        found |= dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert len(pairs) < 2 * 1_500
    assert found == users
    assert calls >= 3


def test_every_master_is_asked_for_its_settings_and_its_keys(cluster: LocalRedisCluster, store: ClusterStore) -> None:
    assert unsafe_settings(look_at(store)) == []
    evicting = cluster.masters[-1]
    cluster.ask(evicting, "CONFIG SET", "maxmemory-policy", "allkeys-lru")
    assert [line.partition(":")[2].partition(":")[0] for line in unsafe_settings(look_at(store))] == [
        str(cluster.nodes[evicting].port)
    ]
    cluster.ask(evicting, "CONFIG SET", "maxmemory-policy", "noeviction")
    store.guarded_write(writes())
    assert remove_keys(store, "{c[0-9]*}:*") == 2 * len(TAGS)
    assert [server.run([("DBSIZE",)]) for server in store.servers()] == [[0]] * 3


def test_slots_that_have_moved_end_a_write_and_the_next_one_finds_them(
    cluster: LocalRedisCluster, store: ClusterStore
) -> None:
    store.guarded_write(writes())
    master = cluster.master_of(key_slot(LEDGERS[0].encode()))
    replica = cluster.replica_of(master)
    fail_over(cluster, replica)
    with pytest.raises(StoreUnavailable, match="MOVED"):
        store.guarded_write(writes())
    assert store.guarded_write(writes())
    assert offsets(store)[0] == b"2", "the moved partition's write was refused once and not repeated"


def test_a_killed_master_makes_the_store_unavailable_until_its_replica_took_over(
    cluster: LocalRedisCluster, store: ClusterStore
) -> None:
    store.guarded_write(writes())
    master = cluster.master_of(key_slot(LEDGERS[0].encode()))
    cluster.kill(master)
    with pytest.raises(StoreUnavailable):
        store.guarded_write(writes())
    cluster.wait_until_replaced(master)
    again = open_store(cluster.url, TIMEOUT_S)  # whichever node the URL names first
    assert offsets(again)[0] == b"1"
    again.close()
    cluster.start(master)
    cluster.wait_until_healthy()
    assert master not in cluster.masters


def test_a_cut_replica_misses_what_is_written(cluster: LocalRedisCluster, store: ClusterStore) -> None:
    store.guarded_write(writes())
    master = cluster.master_of(key_slot(LEDGERS[0].encode()))
    replica = cluster.replica_of(master)
    cluster.cut(replica)
    store.guarded_write(writes())
    with cluster.client(replica) as client:
        client.execute_command("READONLY")
        assert client.hget(LEDGERS[0], "next") == b"1"
    cluster.mend(replica)
    cluster.wait_until_healthy()
    with cluster.client(replica) as client:
        client.execute_command("READONLY")
        wait_until(lambda: client.hget(LEDGERS[0], "next") == b"2")


def test_several_nodes_that_are_no_cluster_are_refused() -> None:
    with local_redis() as one:
        found = open_store(one.url, TIMEOUT_S)
        assert isinstance(found, RedisStore)
        found.close()
        with pytest.raises(StoreRefused, match="not one of a cluster"):
            open_store(one.url.replace("/0", ",127.0.0.1:1/0"), TIMEOUT_S)
