"""The main job on a real Kafka and a real Redis, with real processes that are killed, moved and robbed of their state."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engine.failpoint import STEPS
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed

LIVE_STEPS = [step for step in STEPS if step != "rebuilt"]


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
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("role", "other", "seed"), [("counter", "aggregator", "12"), ("aggregator", "counter", "13")])
def test_a_worker_killed_at_every_step_counts_exactly(deployment: Deployment, role: str, other: str, seed: str) -> None:
    beside = deployment.start(other)
    generator = deployment.generate("--rate", "700", "--seed", seed)
    for number, step in enumerate(LIVE_STEPS):
        passing = 1 if step == "reopened" else 2 + number % 3
        worker = deployment.start(role, failpoint=f"{step}:{passing}")
        assert deployment.wait_for_death(worker) == -signal.SIGKILL, f"did not die at {step}\n{deployment.logs()}"
    last = deployment.start(role)
    generator.terminate()
    generator.wait()
    deployment.assert_exact()
    assert deployment.stop(beside) == 0
    assert deployment.stop(last) == 0


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
def test_a_counter_killed_while_it_rebuilds_begins_the_rebuild_again(deployment: Deployment) -> None:
    counter = deployment.start("counter")
    deployment.start("aggregator")
    assert deployment.generate("--count", "20000", "--seed", "15").wait(60) == 0
    deployment.assert_exact()
    assert deployment.stop(counter) == 0
    deployment.empty_redis()
    for step in ("state_written", "rebuilt"):
        assert deployment.wait_for_death(deployment.start("counter", failpoint=step)) == -signal.SIGKILL
    deployment.start("counter")
    assert deployment.generate("--count", "5000", "--seed", "16").wait(60) == 0
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
