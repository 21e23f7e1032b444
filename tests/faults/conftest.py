"""The fault suite: real processes, faults under load, and the same end to every case (`Deployment.finish`).

`make test` runs the cases marked `smoke`; `make faults` all of them, each SEEDS times. What a case leaves to chance comes
from its `seed`, which stands in its name: SEED=17 runs everything with that one again.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Services
from tests.faults.redis_state import Counting, start_counting
from tests.integration.deployment import Deployment, deployed

FIXED_SEED = 1  # of the smoke cases in `make test`: the same every time
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_other = any(map(item.get_closest_marker, ("smoke", "soak")))  # which are asked for by these names
        if item.path.is_relative_to(HERE) and not is_other:
            item.add_marker(pytest.mark.faults)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", _seeds())


def _seeds() -> list[int]:
    if os.environ.get("SEED"):
        return [int(os.environ["SEED"])]
    count = int(os.environ.get("SEEDS") or 0)
    return [random.randrange(2, 10**6) for _ in range(count)] or [FIXED_SEED]


@pytest.fixture
def chance(seed: int) -> random.Random:
    """All that a case leaves to chance."""
    return random.Random(seed)


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """onecount on the shared services, with its own topics, groups and keys."""
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


@pytest.fixture
def counting(services: Services, topic_prefix: str, tmp_path: Path) -> Counting:
    """onecount on the shared Kafka and a Redis of the test's own, whose URL it is given: `with counting(url) as deployment`.

    Its counter and aggregator have started then, and but for `wait=False` own all partitions.
    """

    @contextmanager
    def counting(redis_url: str, wait: bool = True, **settings: object) -> Iterator[Deployment]:
        with deployed(services.bootstrap, redis_url, topic_prefix, tmp_path, **settings) as running:
            start_counting(running, wait)
            yield running

    return counting
