"""Gives every test that asks for it one real Kafka and one real Redis, started once and only when first asked for.

Where they come from, in this order:
1. addresses in ONECOUNT_TEST_KAFKA ("host:port,...") and ONECOUNT_TEST_REDIS ("redis://host:port/0"): never emptied;
2. containers, if a Docker daemon answers;
3. child processes (app.local), which need `make setup` to have run.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import tests.hypothesis_profile  # noqa: F401 - before any test's settings are made
from app.local import local_kafka, local_redis

Kind = Literal["environment", "testcontainers", "child processes"]

DOCKER_PROBE_TIMEOUT_S = 2
CONTAINER_START_TIMEOUT_S = 60
REDIS_IMAGE = "redis:7"
REDIS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Services:
    """Where the tests' Kafka and Redis are, and who they belong to."""

    bootstrap: str
    redis_url: str
    kind: Kind

    @property
    def are_ours(self) -> bool:
        """Whether they exist for this test run only, so that everything in them may be deleted."""
        return self.kind != "environment"


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """The one Kafka and Redis of this test run."""
    kind, _ = _kind_and_reason()
    with ExitStack() as stack:
        if kind == "environment":
            yield Services(os.environ["ONECOUNT_TEST_KAFKA"], os.environ["ONECOUNT_TEST_REDIS"], kind)
        elif kind == "testcontainers":
            yield Services(stack.enter_context(_kafka_container()), stack.enter_context(_redis_container()), kind)
        else:
            kafka, redis_server = stack.enter_context(local_kafka()), stack.enter_context(local_redis())
            yield Services(kafka.bootstrap, redis_server.url, kind)


@pytest.fixture
def topic_prefix() -> str:
    """A name no other test uses: start topics, groups, transactional ids and Redis keys with it."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_client(services: Services) -> Iterator[redis.Redis]:
    """A client of a Redis that has been emptied, unless it was given by the environment. Commands are not retried."""
    retry = Retry(NoBackoff(), 0)  # a retried command that is not idempotent may run twice
    with redis.Redis.from_url(services.redis_url, socket_timeout=REDIS_TIMEOUT_S, retry=retry) as client:
        if services.are_ours:
            client.flushall()
        yield client


def pytest_report_header() -> str:
    kind, reason = _kind_and_reason()
    return f"onecount services: {kind} ({reason})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the services is an integration test, so that `-m "not integration"` starts nothing."""
    for item in items:
        if "services" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.integration)


@cache
def _kind_and_reason() -> tuple[Kind, str]:
    names = ["ONECOUNT_TEST_KAFKA", "ONECOUNT_TEST_REDIS"]
    given = [name for name in names if os.environ.get(name)]
    if len(given) == 1:
        raise pytest.UsageError(f"{given[0]} is set, but not the other of {' and '.join(names)}")
    if given:
        return "environment", " and ".join(names)
    if _docker_answers():
        return "testcontainers", "a Docker daemon answers"
    return "child processes", "no Docker daemon answers"


def _docker_answers() -> bool:
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    import docker

    try:
        client = docker.from_env(timeout=DOCKER_PROBE_TIMEOUT_S)
        try:
            return client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, OSError):  # requests' exceptions are OSErrors
        return False


@contextmanager
def _kafka_container() -> Iterator[str]:
    """Apache's own image with the settings of app.local; yields its address."""
    from confluent_kafka.admin import AdminClient
    from testcontainers.core.container import DockerContainer

    from app.local.kafka import BROKER_SETTINGS, kafka_version
    from app.local.processes import pick_ports

    container = DockerContainer(f"apache/kafka:{kafka_version()}")
    # The broker must be told the address that clients see, so the outer port is chosen here.
    address = f"{container.get_container_host_ip()}:{pick_ports(1)[0]}"
    settings = BROKER_SETTINGS | {
        "node.id": "1",
        "process.roles": "broker,controller",
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{address}",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
    }
    for name, value in settings.items():
        container.with_env(f"KAFKA_{name.replace('.', '_').upper()}", value)
    container.with_bind_ports(9092, int(address.rpartition(":")[2]))
    with container:
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=CONTAINER_START_TIMEOUT_S)
        yield address


@contextmanager
def _redis_container() -> Iterator[str]:
    """Redis with the settings of app.local; yields its URL."""
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer(REDIS_IMAGE).with_command(
        "redis-server --appendonly yes --save '' --maxmemory-policy noeviction"
    )
    with container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
