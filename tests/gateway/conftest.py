"""One gateway for all tests that leave it as it is."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import Services
from tests.gateway.harness import Gateway
from tests.integration.deployment import deployed


@pytest.fixture(scope="session")
def gateway(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    name = f"test-gate-{os.getpid()}"
    with deployed(services.bootstrap, services.redis_url, name, tmp_path_factory.mktemp("gateway")) as deployment:
        yield Gateway(deployment).ready()
