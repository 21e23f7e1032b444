"""What the demo plays on: Kafka, Redis, topics and workers, in temporary folders on free ports, gone after the block."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from app.demo.figures import Gauge
from app.demo.workers import Workers, running
from app.engine.topics import create_topics
from app.local import LocalServiceError, local_kafka, local_redis
from app.local.kafka import kafka_version
from app.local.processes import PROJECT_ROOT
from app.policy.load import load_policy
from app.policy.model import Policy
from app.settings import Settings

COUNTERS: Final = 2
PARTITIONS: Final = 4
_READY_WITHIN_S: Final = 90.0  # it takes about 3 s; the rest is for a machine that is busy with something else
_KEPT_VARIABLES: Final = ("ONECOUNT_POLICY", "ONECOUNT_KAFKA_LIBS")

Say = Callable[[str, str], None]  # what is ready, what comes next


class Scene(NamedTuple):
    """A deployment that counts. `folder` is for whatever else the demo writes."""

    settings: Settings
    policy: Policy
    folder: Path
    counters: Workers
    aggregators: Workers
    gauge: Gauge
    matchers: Workers | None = None  # where the policy has click_ids

    def check(self) -> None:
        """Raises `LocalServiceError` if a supervisor gave up."""
        self.counters.check()
        self.aggregators.check()
        if self.matchers is not None:
            self.matchers.check()


@contextmanager
def open_scene(say: Say, keep_forever: bool) -> Iterator[Scene]:
    """Starts everything, saying so, and ends everything. `keep_forever`: raw topics for events of the past.

    Raises `LocalServiceError` where something does not start, `PolicyError` for an impossible policy.
    """
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-demo-", ignore_cleanup_errors=True))
        )
        policy_path = Path(os.environ.get("ONECOUNT_POLICY", PROJECT_ROOT / "deploy/policy.yaml")).resolve()
        policy = load_policy(policy_path)[0]
        started_s = time.monotonic()
        redis = stack.enter_context(local_redis())
        kafka = stack.enter_context(local_kafka())
        say(f"Kafka {kafka_version()} on {kafka.bootstrap}, Redis on {redis.url[8:-2]}", "making the topics")
        variables = _variables(folder, policy_path, kafka.bootstrap, redis.url)
        stack.enter_context(environment(variables))
        # here, and in no child, a client's complaint would spoil the screen
        settings = Settings(kafka={"log_level": "0"})
        created = create_topics(settings, policy, -1 if keep_forever else None)
        say(f"{len(created)} topics with {PARTITIONS} partitions", "starting the workers")
        counters = stack.enter_context(running("counter", COUNTERS, folder))
        aggregators = stack.enter_context(running("aggregator", 1, folder))
        matchers = stack.enter_context(running("matcher", 1, folder)) if policy.bounds.click_ids else None
        gauge = Gauge(settings, [*counters.ports, *aggregators.ports, *(matchers.ports if matchers else ())])
        scene = Scene(settings, policy, folder, counters, aggregators, gauge, matchers)
        _wait_until_ready(scene)
        say(
            f"{COUNTERS} counters and 1 aggregator, {time.monotonic() - started_s:.0f} s after the start",
            "waiting for the first event",
        )
        yield scene


def _wait_until_ready(scene: Scene) -> None:
    deadline_s = time.monotonic() + _READY_WITHIN_S
    while True:
        scene.check()
        scene.gauge.scrape()
        if all(scene.gauge.figures.ready.values()):
            return
        if time.monotonic() > deadline_s:
            raise LocalServiceError(
                f"the workers were not ready within {_READY_WITHIN_S:.0f} s; is this machine very busy?"
            )
        time.sleep(0.1)


def _variables(folder: Path, policy_path: Path, bootstrap: str, redis_url: str) -> dict[str, str]:
    """The environment of the demo's processes."""
    return {
        "ONECOUNT_BOOTSTRAP": bootstrap,
        "ONECOUNT_REDIS_URL": redis_url,
        "ONECOUNT_POLICY": str(policy_path),
        "ONECOUNT_PARTITIONS": str(PARTITIONS),
        "ONECOUNT_WORKER_ID": "demo",
        # a worker that is started again takes its partitions back at once, instead of after the session timeout
        "ONECOUNT_STATIC_MEMBERSHIP": "true",
        "TMPDIR": str(folder),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for this process and its children, without what a real deployment has set, and puts
    them back.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith("ONECOUNT_") and name not in _KEPT_VARIABLES:
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
