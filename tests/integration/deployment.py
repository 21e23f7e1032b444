"""One deployment of onecount for a test: its own topics, groups and Redis keys on the shared services, and real worker
processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.engine.topics import create_topics
from app.policy.load import load_policy
from app.settings import Settings
from app.verify.compare import verify

POLICY = Path(__file__).resolve().parents[2] / "deploy" / "policy.yaml"
DEATH_TIMEOUT_S = 40.0
CAUGHT_UP_S = 60.0


class Deployment:
    """Addresses, names and processes of one test's onecount. `environment` is what its processes get."""

    def __init__(self, bootstrap: str, redis_url: str, name: str, folder: Path, **settings: object) -> None:
        names = {
            "events_topics": f"{name}.events",
            "dlq_topic": f"{name}.dlq",
            "rekeyed_topic": f"{name}.rekeyed",
            "deltas_topic": f"{name}.deltas",
            "policy_topic": f"{name}.policy",
            "attributed_topic": f"{name}.attributed",
            "counts_topic": f"{name}.counts",
            "counter_group": f"{name}.counter",
            "aggregator_group": f"{name}.aggregator",
            "namespace": name[-20:],
            "bootstrap": bootstrap,
            "redis_url": redis_url,
            "policy": str(POLICY),
            "worker_id": name,
            # a killed worker's partitions must move on within a test's patience
            "session_timeout_ms": 6_000,
            "transaction_timeout_ms": 5_000,
        } | settings
        self.environment = {f"ONECOUNT_{key.upper()}": str(value) for key, value in names.items()}
        self.settings = Settings(**names)  # type: ignore[arg-type]
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        create_topics(self.settings, load_policy(self.settings.policy)[0], -1)

    def start(self, role: str, slot: int = 0, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """One worker process; its log is `<role>-<slot>.log` in the test's folder."""
        environment = os.environ | self.environment | ({"ONECOUNT_FAILPOINT": failpoint} if failpoint else {})
        with (self.folder / f"{role}-{slot}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "app", "run", role, "--slot", str(slot), "--supervisor", str(os.getpid())],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.running.append(worker)
        return worker

    def generate(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The generator as a process of its own, which any outside producer is."""
        command = [sys.executable, "-m", "app", "generate", *arguments]
        generator = subprocess.Popen(command, env=os.environ | self.environment, stdout=subprocess.DEVNULL)
        self.running.append(generator)
        return generator

    def stop(self, worker: subprocess.Popen[bytes]) -> int:
        """SIGTERM; the exit code."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(DEATH_TIMEOUT_S)

    def wait_for_death(self, worker: subprocess.Popen[bytes]) -> int:
        """Waits until a failpoint has ended the worker; minus the signal's number."""
        return worker.wait(DEATH_TIMEOUT_S)

    def empty_redis(self) -> None:
        """Loses all state of this deployment at once, as a Redis without its data would; what others keep there stays."""
        with redis.Redis.from_url(self.settings.redis_url.get_secret_value()) as client:
            keys = list(client.scan_iter(match=f"{{{self.settings.namespace}.*", count=10_000))
            if keys:
                client.delete(*keys)

    def assert_exact(self) -> None:
        """Waits until all is counted, and compares every row with the independent computation."""
        policy = recorded_policy(self.settings, KafkaClients(self.settings))
        report = verify(self.settings, policy, show=5, wait_s=CAUGHT_UP_S)
        assert report.ok, f"{report}\n{self.logs()}"

    def logs(self) -> str:
        """The ends of the workers' logs, for a failure's message."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def wait_until(self, holds, what: str, timeout_s: float = DEATH_TIMEOUT_S) -> None:  # type: ignore[no-untyped-def]
        """Polls a condition; an error that names it after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.logs()}"
            time.sleep(0.1)


@contextmanager
def deployed(bootstrap: str, redis_url: str, name: str, folder: Path, **settings: object) -> Iterator[Deployment]:
    """A deployment whose processes end with the test."""
    deployment = Deployment(bootstrap, redis_url, name, folder, **settings)
    try:
        yield deployment
    finally:
        for process in deployment.running:
            if process.poll() is None:
                process.kill()
                process.wait()
