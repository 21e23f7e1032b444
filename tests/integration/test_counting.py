"""The main job on a real Kafka and a real Redis, with real processes that are killed, moved and robbed of their state."""

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
