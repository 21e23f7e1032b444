"""Rebalance storms: workers come and go every few seconds under load, with both group protocols, static members or not."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from app.local import local_kafka
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed

PARTITIONS = 4
TURN_S = 3.0
SLOTS = range(6)  # names that a role's workers may have
WORKERS_MAX = 3  # at once, a role; below the partitions, so that each can own some
SETTLE_S = 60.0
# The longest time in which nothing at all is committed: a session timeout (6 s), in which a dead worker's partitions wait,
# a second one that dies meanwhile, the joins, and the start of a worker on a busy machine.
STALL_MAX_S = 30.0
# what the KIP-848 protocol has in place of the client's session.timeout.ms
CONSUMER_PROTOCOL = {
    "group_consumer_min_session_timeout_ms": 6_000,
    "group_consumer_session_timeout_ms": 6_000,
    "group_consumer_min_heartbeat_interval_ms": 1_000,
    "group_consumer_heartbeat_interval_ms": 1_000,
}
Name = tuple[str, int]
Workers = dict[Name, "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def own_broker() -> Iterator[str]:
    """A broker that gives members of a KIP-848 group up within seconds."""
    with local_kafka(**CONSUMER_PROTOCOL) as kafka:
        yield kafka.bootstrap


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_counters_added_and_removed_every_three_seconds_count_exactly(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    weather(deployment, chance, seed, ("counter",), 20)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("static_membership", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("group_protocol", ["classic", "consumer"])
def test_two_minutes_of_workers_added_and_removed_count_exactly(
    own_broker: str,
    services: Services,
    topic_prefix: str,
    tmp_path: Path,
    chance: random.Random,
    seed: int,
    group_protocol: str,
    static_membership: bool,
) -> None:
    with deployed(
        *(own_broker, services.redis_url, topic_prefix, tmp_path),
        group_protocol=group_protocol,
        static_membership=static_membership,
    ) as deployment:
        weather(deployment, chance, seed, ("counter", "aggregator"), 120)


def weather(deployment: Deployment, chance: random.Random, seed: int, roles: tuple[str, ...], storm_s: float) -> None:
    """A storm over the workers of `roles`, then calm: each worker that is left owns partitions, no two the same."""
    workers = {(role, 0): deployment.start(role, 0) for role in ("counter", "aggregator")}
    with deployment.load(seed=seed):
        wait_until_shared(deployment, workers)
        removed = storm(deployment, workers, chance, roles, storm_s)
        wait_until_shared(deployment, workers)
    for name, worker, number in removed:
        # a SIGTERM may come before Python has begun to listen to it
        expected = (-signal.SIGKILL,) if number == signal.SIGKILL else (0, -signal.SIGTERM)
        assert worker.wait(40) in expected, f"{name}: {worker.returncode}\n{deployment.logs()}"
    deployment.finish()


def storm(
    deployment: Deployment, workers: Workers, chance: random.Random, roles: tuple[str, ...], storm_s: float
) -> list[tuple[Name, "subprocess.Popen[bytes]", signal.Signals]]:
    """Adds or removes a worker every few seconds, and looks whether work goes on; who was removed, and by which signal."""
    removed: list[tuple[Name, subprocess.Popen[bytes], signal.Signals]] = []
    watched = [Progress(deployment, role) for role in roles]
    begun = time.monotonic()
    turns = 0
    while time.monotonic() - begun < storm_s:
        role = chance.choice(roles)
        slots = [slot for of, slot in workers if of == role]
        if len(slots) == 1 or (len(slots) < WORKERS_MAX and chance.random() < 0.5):
            living = {name for name, worker, _ in removed if worker.poll() is None}
            name = next((role, slot) for slot in SLOTS if (role, slot) not in workers.keys() | living)
            workers[name] = deployment.start(*name)
        else:
            name = role, chance.choice(slots)
            number = signal.SIGKILL if len(removed) % 3 == 1 else signal.SIGTERM
            workers[name].send_signal(number)
            removed.append((name, workers.pop(name), number))
        turns += 1
        while time.monotonic() - begun < turns * TURN_S:
            time.sleep(0.5)
            for progress in watched:
                progress.look()
    assert removed, "nobody was removed"
    return removed


class Progress:
    """Whether a stage commits offsets; `longest_s` is the longest time that passed without."""

    def __init__(self, deployment: Deployment, role: str) -> None:
        self.deployment, self.role = deployment, role
        settings = deployment.settings
        group, topics = {
            "counter": (settings.counter_group, settings.input_topics()),
            "aggregator": (settings.aggregator_group, (settings.deltas_topic,)),
        }[role]
        self.places = [TopicPartition(topic, partition) for topic in topics for partition in range(PARTITIONS)]
        # it never joins; and it is not held up by open transactions
        self.consumer = Consumer(
            {"bootstrap.servers": settings.bootstrap, "group.id": group, "isolation.level": "read_uncommitted"}
        )
        self.longest_s = 0.0
        self.reached = self._committed()
        self.since = time.monotonic()

    def look(self) -> None:
        """Fails if nothing was committed for too long."""
        reached, now = self._committed(), time.monotonic()
        self.longest_s = max(self.longest_s, now - self.since)
        assert self.longest_s < STALL_MAX_S, f"no {self.role} commits any more\n{self.deployment.logs()}"
        if reached > self.reached:
            self.reached, self.since = reached, now

    def _committed(self) -> int:
        return sum(max(place.offset, 0) for place in self.consumer.committed(self.places, 10))


def wait_until_shared(deployment: Deployment, workers: Workers) -> None:
    """Until each worker says that it owns partitions, and together they own each partition of their stage once."""

    def shared() -> bool:
        for role in ("counter", "aggregator"):
            owned = [deployment.owned(*name) for name in workers if name[0] == role]
            if not all(owned) or sorted(chain(*owned)) != list(range(PARTITIONS)):
                return False
        return True

    deployment.wait_until(shared, f"{sorted(workers)} own each partition once", SETTLE_S)
