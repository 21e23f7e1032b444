"""A Redis that answers late or not with a write: stalls, full memory, too few replicas, a replica, a setting that evicts."""

import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import redis

from app.engine.loop import LOOK_S
from app.local import LocalRedis, local_redis
from app.run import REFUSED
from tests.faults.forwarder import forwarder
from tests.faults.redis_state import (
    ROLES,
    Counting,
    Place,
    last_batches,
    reasons,
    state_offsets,
    wait_until_counting,
)
from tests.integration.deployment import Deployment

REQUEST_TIMEOUT_S = 2
RESUMED_S_MAX = 15.0
REPLICA = "point ONECOUNT_REDIS_URL at its master"
NOTICED_S_MAX = LOOK_S + 5  # a batch, and a machine that is busy


@pytest.mark.timeout(180)
def test_a_write_that_is_executed_after_its_timeout_counts_once(counting: Counting, seed: int) -> None:
    """Redis stops just as a MULTI reaches it, until the worker has given up; then it executes what it had received."""
    with (
        local_redis() as server,
        forwarder(server.port) as address,
        counting(address.redis_url, request_timeout_ms=REQUEST_TIMEOUT_S * 1000) as deployment,
    ):
        with deployment.load(seed=seed):
            for _ in range(2):
                wait_until_counting(deployment, server.url)
                stop = StopAtWrite(server, deployment)
                address.before = stop
                assert stop.done.wait(20), "no batch was written"
                address.refuse()  # so that whatever changes next is that write
                time.sleep(REQUEST_TIMEOUT_S + 1.5)
                os.kill(server.pid, signal.SIGCONT)
                deployment.wait_until(
                    lambda stop=stop: state_offsets(server.url, deployment.settings) != stop.state,
                    "the write is executed late",
                )
                address.lead_to(server.port)
                wait_until_counting(deployment, server.url)
        assert sum("Timeout" in why for why in reasons(deployment)) >= 2, deployment.logs()
        deployment.finish()


class StopAtWrite:
    """Stops a Redis once, just before an EXEC is passed on to it. `state` is how far the state was then."""

    def __init__(self, server: LocalRedis, deployment: Deployment) -> None:
        self.server, self.settings = server, deployment.settings
        self.done = Event()
        self.state: dict[Place, int] = {}

    def __call__(self, sent: bytes) -> None:
        """Looks at what a worker sends."""
        if self.state or b"EXEC\r\n" not in sent:
            return
        self.state = state_offsets(self.server.url, self.settings)
        os.kill(self.server.pid, signal.SIGSTOP)
        self.done.set()


@pytest.mark.timeout(300)
def test_stalls_shorter_and_longer_than_the_timeout_count_exactly(
    counting: Counting, chance: random.Random, seed: int
) -> None:
    """The process is stopped, or busy with one command."""
    with (
        local_redis(enable_debug_command="yes") as server,
        counting(server.url, request_timeout_ms=REQUEST_TIMEOUT_S * 1000) as deployment,
    ):
        with deployment.load(seed=seed), redis.Redis.from_url(server.url, socket_timeout=30) as client:
            for stall_s in (0.5, 3, chance.uniform(0, 5), 3, chance.uniform(0, 5), REQUEST_TIMEOUT_S):
                time.sleep(chance.uniform(0, 2))
                if chance.random() < 0.5:
                    client.execute_command("DEBUG", "SLEEP", stall_s)
                else:
                    os.kill(server.pid, signal.SIGSTOP)
                    time.sleep(stall_s)
                    os.kill(server.pid, signal.SIGCONT)
            assert wait_until_counting(deployment, server.url) < RESUMED_S_MAX
        assert any("Timeout" in why for why in reasons(deployment)), deployment.logs()
        deployment.finish()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("setting", "tight", "wide", "remedy"),
    [
        ("maxmemory", lambda used_bytes: used_bytes + 150_000, 0, "raise maxmemory"),
        ("min-replicas-to-write", lambda used_bytes: 1, 0, "fewer replicas than its min-replicas-to-write"),
    ],
    ids=["full", "too few replicas"],
)
def test_a_redis_that_refuses_writes_makes_workers_wait_until_it_is_mended(
    counting: Counting, seed: int, setting: str, tight, wide: int, remedy: str
) -> None:
    with local_redis() as server, counting(server.url) as deployment:
        with deployment.load(seed=seed), redis.Redis.from_url(server.url, socket_timeout=10) as client:
            time.sleep(2)
            client.config_set(setting, tight(client.info("memory")["used_memory"]))
            deployment.wait_until(lambda: told(deployment, "counter", remedy), "the counter says what to do", 60)
            time.sleep(4)
            counted = {place: batch.reached for place, batch in last_batches(deployment.settings).items()}
            time.sleep(3)
            after = {place: batch.reached for place, batch in last_batches(deployment.settings).items()}
            topic = deployment.settings.events_topics[0]
            assert {place: after[place] for place in after if place[0] == topic} == {
                place: counted[place] for place in counted if place[0] == topic
            }, "counted on without Redis"
            client.config_set(setting, wide)
            assert wait_until_counting(deployment, server.url) < RESUMED_S_MAX
        deployment.finish()
        assert lives(deployment, "counter") == lives(deployment, "aggregator") == 1


@pytest.mark.timeout(240)
def test_workers_given_a_replicas_address_wait_until_it_is_promoted(counting: Counting, seed: int) -> None:
    with (
        local_redis() as master,
        local_redis(replicaof=f"127.0.0.1 {master.port}") as replica,
        counting(replica.url, wait=False) as deployment,
        redis.Redis.from_url(replica.url) as client,
    ):
        checked = deployment.onecount("check")
        assert checked.returncode == 1
        assert REPLICA in " ".join(checked.stdout.split())
        with deployment.load(seed=seed):
            wait_until_both_say(deployment, REPLICA)
            client.replicaof("NO", "ONE")
            assert wait_until_counting(deployment, replica.url) < RESUMED_S_MAX
        deployment.finish()
        assert lives(deployment, "counter") == lives(deployment, "aggregator") == 1


@pytest.mark.timeout(240)
def test_a_master_that_becomes_a_replica_makes_workers_wait(counting: Counting, seed: int) -> None:
    """A failover whose address has not followed yet. What was written to the former master only is lost with it."""
    with (
        local_redis() as first,
        local_redis(replicaof=f"127.0.0.1 {first.port}") as second,
        forwarder(first.port) as address,
        counting(address.redis_url) as deployment,
        redis.Redis.from_url(first.url) as old_master,
        redis.Redis.from_url(second.url) as new_master,
    ):
        with deployment.load(seed=seed):
            wait_until_counting(deployment, first.url)
            new_master.replicaof("NO", "ONE")
            old_master.replicaof("127.0.0.1", str(second.port))
            wait_until_both_say(deployment, REPLICA)
            address.lead_to(second.port)
            assert wait_until_counting(deployment, second.url) < RESUMED_S_MAX
        deployment.finish()


@pytest.mark.timeout(60)
def test_a_redis_that_may_evict_is_refused_at_start(counting: Counting) -> None:
    with (
        local_redis(maxmemory_policy="allkeys-lru") as server,
        counting(server.url, wait=False) as deployment,
    ):
        assert deployment.onecount("check").returncode == 1
        assert [worker.wait(30) for worker in deployment.running] == [REFUSED, REFUSED]
        assert all("set it to noeviction" in why for why in refusals(deployment))


@pytest.mark.timeout(240)
def test_workers_stop_when_redis_is_told_to_evict_and_start_again_once_it_is_set_back(
    counting: Counting, seed: int
) -> None:
    """No key was evicted, so setting it back is all that is needed."""
    with local_redis() as server, counting(server.url) as deployment:
        with deployment.load(seed=seed), redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "volatile-lru")
            assert_refused_in_time(deployment.running[:2])
            client.config_set("maxmemory-policy", "noeviction")
            deployment.start("counter")
            deployment.start("aggregator")
            wait_until_counting(deployment, server.url)
        assert len(refusals(deployment)) == 2
        assert all("set it to noeviction" in why for why in refusals(deployment))
        deployment.finish()


@pytest.mark.timeout(300)
def test_keys_that_were_evicted_are_refused_until_all_is_counted_anew(counting: Counting, seed: int) -> None:
    """The way that the refusal tells: noeviction, `onecount reset`, CONFIG RESETSTAT."""
    with local_redis() as server, counting(server.url) as deployment:
        with redis.Redis.from_url(server.url) as client:
            with deployment.load(seed=seed):
                wait_until_counting(deployment, server.url)
                client.config_set("maxmemory-policy", "allkeys-random")
                client.config_set("maxmemory", client.info("memory")["used_memory"])
                assert_refused_in_time(deployment.running[:2])
            assert client.info("stats")["evicted_keys"] > 0
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
            refused = deployment.onecount("run", "counter")
            assert refused.returncode == REFUSED
            assert re.search(
                r"\d+ keys were evicted since it started.*onecount reset.*CONFIG RESETSTAT", refused.stderr
            )
            assert deployment.onecount("reset", "--yes").returncode == 0
            client.config_resetstat()
        deployment.start("counter")
        deployment.start("aggregator")
        deployment.finish()


def assert_refused_in_time(workers: list[subprocess.Popen[bytes]]) -> None:
    """They end with the code for a refusal, within the stated time."""
    begun_s = time.monotonic()
    with ThreadPoolExecutor() as waiting:
        codes = list(waiting.map(lambda worker: worker.wait(60), workers))
    assert codes == [REFUSED] * len(workers)
    assert time.monotonic() - begun_s < NOTICED_S_MAX


def wait_until_both_say(deployment: Deployment, remedy: str) -> None:
    """Until the logs of both workers say what to do."""
    for role in ROLES:
        deployment.wait_until(lambda role=role: told(deployment, role, remedy), f"the {role} says: {remedy}")


def told(deployment: Deployment, role: str, remedy: str) -> bool:
    """Whether a worker's log says what to do."""
    return any(remedy in event.get("why", "") for event in deployment.events(role))


def refusals(deployment: Deployment) -> list[str]:
    """Why workers ended for good."""
    events = [event for role in ROLES for event in deployment.events(role)]
    return [event["why"] for event in events if event["event"] == "refused"]


def lives(deployment: Deployment, role: str) -> int:
    """How often a worker was started."""
    return sum(event["event"] == "started" for event in deployment.events(role))
