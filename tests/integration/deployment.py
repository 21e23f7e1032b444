"""One deployment of onecount for a test: its own topics, groups and Redis keys on the shared services, and real worker
processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import orjson
from confluent_kafka import Consumer, TopicPartition

from app.engine.clients import KafkaClients
from app.engine.maintenance import remove_keys
from app.engine.policy_topic import recorded_policy
from app.engine.store import open_store
from app.engine.topics import create_topics
from app.policy.load import load_policy
from app.settings import Settings
from app.verify.compare import verify
from app.verify.report import Report

POLICY = Path(__file__).resolve().parents[2] / "deploy" / "policy.yaml"
DEATH_TIMEOUT_S = 40.0
CAUGHT_UP_S = 60.0
TRANSACTIONS_END_S = 20.0
REDIS_TIMEOUT_S = 10.0


TOPICS = (
    "dlq", "rekeyed", "deltas", "clicks", "policy", "attributed", "counts", "journeys", "models", "rollups", "leads", "overdue", "followups",
    "orders", "reported", "spend", "reconciliation", "return", "desk_dlq",
)  # fmt: skip


def names_of(name: str) -> dict[str, str]:
    """Every topic and group of a deployment, as settings: none is shared with another one."""
    groups = {f"{each}_group": f"{name}.{each}" for each in ("counter", "aggregator", "matcher", "desk")}
    return {"events_topics": f"{name}.events"} | {f"{each}_topic": f"{name}.{each}" for each in TOPICS} | groups


class Deployment:
    """Addresses, names and processes of one test's onecount. `environment` is what its processes get."""

    def __init__(self, bootstrap: str, redis_url: str, name: str, folder: Path, **settings: object) -> None:
        names = (
            names_of(name)
            | {
                "namespace": name[-20:],
                "bootstrap": bootstrap,
                "redis_url": redis_url,
                "policy": str(POLICY),
                "worker_id": name,
                # a killed worker's partitions must move on within a test's patience
                "session_timeout_ms": 6_000,
                "transaction_timeout_ms": 5_000,
            }
            | settings
        )
        self.environment = {f"ONECOUNT_{key.upper()}": str(value) for key, value in names.items()}
        self.settings = Settings(**names)  # type: ignore[arg-type]
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        policy = load_policy(self.settings.policy)[0]
        self.follows_journeys = policy.bounds.journeys is not None
        self.matches_clicks = policy.bounds.click_ids is not None
        create_topics(self.settings, policy, -1)

    def start(
        self, role: str, slot: int = 0, failpoint: str | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """One worker process, which may be told otherwise than the rest; its log is `<role>-<slot>.log` in the test's folder."""
        environment = os.environ | self.environment | environment
        if failpoint:
            environment["ONECOUNT_FAILPOINT"] = failpoint
        with (self.folder / f"{role}-{slot}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "app", "run", role, "--slot", str(slot), "--supervisor", str(os.getpid())],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.running.append(worker)
        return worker

    def desk(self, **environment: str) -> subprocess.Popen[bytes]:
        """One `onecount desk` on a free port; its log is `desk-0.log`."""
        with (self.folder / "desk-0.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "desk"],
                env=os.environ | {"ONECOUNT_DESK_PORT": "0"} | self.environment | environment,
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    def shown(self, path: str) -> dict[str, Any]:
        """What the last desk answers, once it has read everything."""
        found: list[dict[str, Any]] = []

        def is_answered() -> bool:
            urls = [event["url"] for event in self.events("desk") if "url" in event]
            if not urls:
                return False
            try:
                with urlopen(urls[-1].removesuffix("/leads") + path, timeout=10) as answer:
                    found.append(orjson.loads(answer.read()))
            except URLError:  # it does not listen yet, or has not read everything
                return False
            return True

        self.wait_until(is_answered, f"the desk answers {path}")
        return found[-1]

    def serve(self) -> tuple[subprocess.Popen[bytes], str]:
        """One `onecount serve` on a free port, and its address."""
        path = self.folder / f"page-{len(self.running)}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env=os.environ | self.environment | {"ONECOUNT_PAGE_PORT": "0"},
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        self.wait_until(lambda: b'"url"' in path.read_bytes(), "the page is served")
        told = (orjson.loads(line) for line in path.read_bytes().splitlines() if b'"url"' in line)
        return process, next(told)["url"]

    def generate(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The generator as a process of its own, which any outside producer is; its log is `generator.log`."""
        command = [sys.executable, "-m", "app", "generate", *arguments]
        with (self.folder / "generator.log").open("ab") as log:
            generator = subprocess.Popen(command, env=os.environ | self.environment, stdout=log, stderr=log)
        self.running.append(generator)
        return generator

    def onecount(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command as an operator runs it."""
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def load(self, *arguments: str, rate: int = 700, seed: int = 1) -> Iterator[subprocess.Popen[bytes]]:
        """Continuous load with repeats, late clicks, adjustments and invalid events, as long as the block lasts."""
        generator = self.generate("--rate", str(rate), "--seed", str(seed), *arguments)
        try:
            yield generator
            assert generator.poll() is None, f"the load ended by itself: {generator.returncode}"
        finally:
            generator.terminate()
            generator.wait()

    def finish(self, caught_up_s: float = CAUGHT_UP_S) -> Report:
        """How every case ends: each row is exact, each worker stops by itself, no transaction is open, no process left."""
        report = self.assert_exact(caught_up_s)
        for worker in self.running:
            if worker.poll() is None:
                assert self.stop(worker) == 0, self.logs()
        self.wait_until(lambda: not self.open_transactions(), "all transactions end", TRANSACTIONS_END_S)
        left = [process.pid for process in self.running if process.poll() is None]
        assert not left, f"still running: {left}"
        return report

    def open_transactions(self) -> list[str]:
        """The topic-partitions of this deployment that end in a transaction which is neither committed nor aborted."""
        found = []
        for isolation in ("read_uncommitted", "read_committed"):
            consumer = Consumer(
                {"bootstrap.servers": self.settings.bootstrap, "group.id": "look", "isolation.level": isolation}
            )
            try:
                known = consumer.list_topics(timeout=10).topics
                ends = {
                    f"{topic}/{partition}": consumer.get_watermark_offsets(
                        TopicPartition(topic, partition), timeout=10
                    )[1]
                    for topic in self.topics()
                    for partition in known[topic].partitions
                }
            finally:
                consumer.close()
            found.append(ends)
        every, stable = found
        return [place for place in every if stable[place] < every[place]]

    def topics(self) -> list[str]:
        """All its topics."""
        settings = self.settings
        return [
            *settings.input_topics(),
            settings.dlq_topic,
            settings.handled_topic,
            settings.deltas_topic,
            settings.policy_topic,
            settings.attributed_topic,
            settings.counts_topic,
            *((settings.journeys_topic, settings.models_topic) if self.follows_journeys else ()),
            *((settings.clicks_topic,) if self.matches_clicks else ()),
        ]

    def stop(self, worker: subprocess.Popen[bytes]) -> int:
        """SIGTERM; the exit code."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(DEATH_TIMEOUT_S)

    def wait_for_death(self, worker: subprocess.Popen[bytes]) -> int:
        """Waits until a failpoint has ended the worker; minus the signal's number."""
        return worker.wait(DEATH_TIMEOUT_S)

    def empty_redis(self) -> None:
        """Loses all state of this deployment at once, as a Redis without its data would; what others keep there stays."""
        with closing(open_store(self.settings.redis_url.get_secret_value(), REDIS_TIMEOUT_S)) as store:
            remove_keys(store, f"{{{self.settings.namespace}.*")

    def assert_exact(self, caught_up_s: float = CAUGHT_UP_S) -> Report:
        """Waits until all is counted, and compares every row with the independent computation; what that found."""
        policy = recorded_policy(self.settings, KafkaClients(self.settings))
        report = verify(self.settings, policy, show=5, wait_s=caught_up_s, processes=os.cpu_count() or 1)
        assert report.ok, f"{report}\n{self.logs()}"
        return report

    def events(self, role: str, slot: int = 0) -> list[dict[str, Any]]:
        """What a worker has logged, over all its lives."""
        path = self.folder / f"{role}-{slot}.log"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [orjson.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]

    def owned(self, role: str, slot: int = 0) -> list[int]:
        """The partitions that a worker said it owns, in its present life."""
        last: list[int] = []
        for event in self.events(role, slot):
            last = event["owned"] if event["event"] == "partitions" else [] if event["event"] == "started" else last
        return last

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
