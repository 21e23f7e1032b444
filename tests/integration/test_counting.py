"""The main job on a real Kafka and a real Redis, with real processes that are killed, moved and robbed of their state."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


def test_a_quiet_run_counts_every_row_exactly(deployment: Deployment) -> None:
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    assert deployment.generate("--count", "30000", "--seed", "11").wait(60) == 0
    deployment.assert_exact()
    assert deployment.stop(counter) == 0
    assert deployment.stop(aggregator) == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_redis_emptied_in_flight_is_rebuilt_and_counts_exactly(deployment: Deployment) -> None:
    deployment.start("counter")
    deployment.start("aggregator")
    generator = deployment.generate("--rate", "1000", "--duration", "20", "--seed", "14")
    time.sleep(9)
    deployment.empty_redis()
    assert generator.wait(60) == 0
    deployment.assert_exact()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_counters_with_a_rebalance_and_a_restart_in_the_middle_count_exactly(deployment: Deployment) -> None:
    first = deployment.start("counter", slot=0)
    deployment.start("aggregator")
    generator = deployment.generate("--rate", "1000", "--duration", "25", "--seed", "17")
    time.sleep(6)
    second = deployment.start("counter", slot=1)
    time.sleep(7)
    second.kill()
    time.sleep(2)
    deployment.start("counter", slot=2)
    time.sleep(4)
    assert deployment.stop(first) == 0
    assert generator.wait(60) == 0
    deployment.start("counter", slot=0)
    deployment.assert_exact()
