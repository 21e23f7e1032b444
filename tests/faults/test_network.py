"""The network to Kafka or to Redis is cut, half-open or slow, and the broker's disk is full: onecount stops counting, says
so in its log and at /ready, and resumes exactly.
"""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from app.local import local_kafka, local_redis
from app.local.processes import HOST, pick_ports
from tests.faults.proxy import Proxy, proxy
from tests.faults.redis_state import ROLES, Place, last_batches, reasons, state_offsets, wait_until_counting
from tests.integration.deployment import Deployment, deployed

DIRECT = "DIRECT"  # the listener that does not lead through the proxy
HTTP_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 4.0
# With nothing to commit a worker finds out when it next looks at its topics (10 s) and is not answered.
STOPPED_S_MAX = 40.0
RESUMED_S_MAX = 40.0
DISK_MB = 256
LEFT_BYTES = 1_500_000  # what a deployment of a test fills within seconds
FILL_S = 90.0


class Network(NamedTuple):
    """onecount between two proxies; the load and the looks at it go past them."""

    deployment: Deployment
    kafka: Proxy
    redis: Proxy
    redis_url: str  # past the proxy

    def of(self, service: str) -> Proxy:
        return self.kafka if service == "kafka" else self.redis


@pytest.fixture
def network(topic_prefix: str, tmp_path: Path) -> Iterator[Network]:
    """A broker and a Redis of the test's own behind proxies."""
    port = pick_ports(1)[0]
    with (
        local_kafka(advertise=[port], listeners={DIRECT: "PLAINTEXT"}) as broker,
        local_redis() as server,
        proxy(broker.ports[0], port) as to_kafka,
        proxy(server.port) as to_redis,
        counting(broker.bootstrap_of(DIRECT), to_redis.redis_url, topic_prefix, tmp_path, to_kafka.address) as running,
    ):
        yield Network(running, to_kafka, to_redis, server.url)


@contextmanager
def counting(bootstrap: str, redis_url: str, name: str, folder: Path, workers_bootstrap: str) -> Iterator[Deployment]:
    """A deployment whose workers tell /ready, and may meet Kafka elsewhere than others do."""
    with deployed(
        bootstrap, redis_url, name, folder, metrics_port=0, request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000)
    ) as deployment:
        for role in ROLES:
            deployment.start(role, ONECOUNT_BOOTSTRAP=workers_bootstrap)
        deployment.wait_until(lambda: answers(deployment, "/ready") == {200}, "both workers are ready")
        yield deployment


@pytest.mark.timeout(240)
def test_a_half_open_network_to_redis_stops_counting_and_resumes_exactly(
    network: Network, seed: int, record_property: Callable[[str, object], None]
) -> None:
    lose("redis", Proxy.swallow, network, seed, record_property)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("service", "fault"),
    [("redis", Proxy.cut), ("kafka", Proxy.cut), ("kafka", Proxy.swallow)],
    ids=["redis-cut", "kafka-cut", "kafka-half-open"],
)
def test_a_broken_network_stops_counting_and_resumes_exactly(
    network: Network,
    seed: int,
    service: str,
    fault: Callable[[Proxy], None],
    record_property: Callable[[str, object], None],
) -> None:
    lose(service, fault, network, seed, record_property)


@pytest.mark.timeout(240)
def test_short_breaks_on_both_sides_count_exactly(network: Network, seed: int) -> None:
    """Shorter than most timeouts, so that some calls are broken and others merely late."""
    with network.deployment.load(seed=seed):
        for fault in (Proxy.cut, Proxy.swallow):
            for service in ("kafka", "redis"):
                wait_until_counting(network.deployment, network.redis_url)
                fault(network.of(service))
                time.sleep(1.5)
                network.of(service).restore()
        wait_until_counting(network.deployment, network.redis_url)
    network.deployment.finish()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["kafka", "redis"])
def test_a_slow_network_slows_counting_and_breaks_nothing(network: Network, seed: int, service: str) -> None:
    with network.deployment.load(seed=seed, rate=300):
        wait_until_counting(network.deployment, network.redis_url)
        doubts = len(reasons(network.deployment))
        network.of(service).delay_s = 0.1
        for _ in range(3):
            wait_until_counting(network.deployment, network.redis_url)
        assert len(reasons(network.deployment)) == doubts, reasons(network.deployment)
        network.of(service).delay_s = 0
    network.deployment.finish()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk (tmpfs)")
@pytest.mark.timeout(400)
def test_a_full_disk_of_the_broker_stops_counting_until_there_is_room(
    topic_prefix: str, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        local_kafka(log_dirs=str(disk)) as kafka,
        local_redis() as server,
        counting(kafka.bootstrap, server.url, topic_prefix, tmp_path, kafka.bootstrap) as deployment,
    ):
        with deployment.load(seed=seed, rate=1500):
            wait_until_counting(deployment, server.url)
            filler = fill(disk)
            wait_until_stopped(deployment, "kafka", FILL_S + STOPPED_S_MAX)
            assert "No space left on device" in kafka.log_paths[0].read_text()
            before = state_offsets(server.url, deployment.settings)
            time.sleep(5)
            assert state_offsets(server.url, deployment.settings) == before
            kafka.kill()  # it has ended by itself, if it could
            filler.unlink()
            kafka.start()
            resumed(deployment, server.url, record_property)
        deployment.finish()


def lose(
    service: str,
    fault: Callable[[Proxy], None],
    network: Network,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Breaks the network to a service until the workers say so, and mends it."""
    deployment = network.deployment
    with deployment.load(seed=seed):
        wait_until_counting(deployment, network.redis_url)
        fault(network.of(service))
        record_property("stopped_s", wait_until_stopped(deployment, service, STOPPED_S_MAX))
        before = reached(deployment, network.redis_url)
        time.sleep(8)
        assert reached(deployment, network.redis_url) == before
        assert answers(deployment, "/ready") == {503}
        assert answers(deployment, "/live") == {200}
        network.of(service).restore()
        resumed(deployment, network.redis_url, record_property)
    deployment.finish()


def wait_until_stopped(deployment: Deployment, service: str, timeout_s: float) -> float:
    """Until both workers say that they do not count, and why; the seconds that took."""
    begun_s = time.monotonic()
    deployment.wait_until(lambda: answers(deployment, "/ready") == {503}, "no worker is ready", timeout_s)
    stopped_s = round(time.monotonic() - begun_s, 1)
    # one that has nothing to commit loses its partitions first, and learns why when it next looks at its topics
    deployment.wait_until(lambda: all(says(deployment, role, service) for role in ROLES), "both say why", timeout_s)
    return stopped_s


def says(deployment: Deployment, role: str, service: str) -> bool:
    """Whether a worker has named the service as why its session ended."""
    why = [event["why"] for event in deployment.events(role) if event["event"].startswith("session ended")]
    return any(service.title() in line for line in why)


def resumed(deployment: Deployment, redis_url: str, record_property: Callable[[str, object], None]) -> None:
    """Waits until everything counts again, and both workers say so."""
    resumed_s = wait_until_counting(deployment, redis_url)
    record_property("resumed_s", round(resumed_s, 1))
    assert resumed_s < RESUMED_S_MAX
    deployment.wait_until(lambda: answers(deployment, "/ready") == {200}, "both workers are ready again")


def reached(deployment: Deployment, redis_url: str) -> list[dict[Place, object]]:
    """How far the state is, and what is published."""
    return [dict(state_offsets(redis_url, deployment.settings)), dict(last_batches(deployment.settings))]


def answers(deployment: Deployment, path: str) -> set[int]:
    """What the workers' health pages answer; 0 for a worker that has none yet."""
    return {_answer(deployment, role, path) for role in ROLES}


def _answer(deployment: Deployment, role: str, path: str) -> int:
    ports = [event["port"] for event in deployment.events(role) if event["event"] == "metrics"]
    if not ports:
        return 0
    try:
        with urllib.request.urlopen(f"http://{HOST}:{ports[-1]}{path}", timeout=HTTP_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "onecount-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leaves little room on a file system; the file that takes the rest."""
    filler = folder / "filler"
    room = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - LEFT_BYTES)
    return filler
