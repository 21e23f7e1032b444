"""One fresh onecount for a measurement: its topics, groups, Redis and worker processes."""

import os
import re
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from app.engine.keys import find_keys
from app.engine.store import open_store
from app.local import local_redis, local_redis_cluster
from app.local.processes import PROJECT_ROOT, ChildProcess, tail
from tests.bench.progress import BenchError, Progress, wait_until

PARTITIONS: Final = 4  # of workload W1
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
TIMEOUT_S: Final = 30.0
W1_POLICY: Final = Path(__file__).with_name("w1-policy.yaml")
LOOK_S: Final = 0.02  # how often a starting worker's partitions are looked at
ROLES: Final = ("counter", "aggregator")
LEDGERS: Final = "*:ledger"  # a partition's ledger is written when the partition is opened
_TOPICS: Final = {
    "dlq": "ads.events.dlq",
    "rekeyed": "onecount.rekeyed",
    "deltas": "onecount.deltas",
    "policy": "onecount.policy",
    "attributed": "conversions.attributed",
    "counts": "conversions.counts",
}
_STEP = re.compile(r'onecount_batch_seconds_sum\{[^}]*step="(\w+)"[^}]*\} (\S+)')


class Deployment:
    """The names, addresses and processes of one onecount; made by `fresh_deployment`."""

    def __init__(
        self, name: str, bootstrap: str, redis: "RedisServers", events_topic: str, policy: Path, folder: Path
    ) -> None:
        self.name = name
        self.events_topic = events_topic
        self.redis = redis
        self.store = open_store(redis.url, TIMEOUT_S)
        self.topics = {role: f"{name}.{topic}" for role, topic in _TOPICS.items()}
        self.groups = {role: f"{name}.{role}" for role in ROLES}
        self.workers: dict[str, ChildProcess] = {}
        self.profiles: Path | None = None
        self._folder = folder
        self.environment = {
            "ONECOUNT_BOOTSTRAP": bootstrap,
            "ONECOUNT_REDIS_URL": redis.url,
            "ONECOUNT_POLICY": str(policy),
            "ONECOUNT_EVENTS_TOPICS": events_topic,
            "ONECOUNT_PARTITIONS": str(PARTITIONS),
            "ONECOUNT_METRICS_PORT": "0",
            **{f"ONECOUNT_{role.upper()}_TOPIC": topic for role, topic in self.topics.items()},
            **{f"ONECOUNT_{role.upper()}_GROUP": group for role, group in self.groups.items()},
        }

    def create_topics(self) -> None:
        """Creates the topics that are missing, as an operator would."""
        argv = [sys.executable, "-m", "app", "topics", "create"]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(argv, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"topics create: {done.stdout}{done.stderr}")

    def start(self, role: str, workers: int = 1) -> None:
        """Starts so many workers, under one supervisor, and returns as soon as all partitions are open."""
        command = ["-m", "app", "run", role, "--workers", str(workers)]
        if self.profiles is not None:
            command = ["-m", "tests.bench.profiled", str(self.profiles / f"{self.name}.{role}.prof"), "run", role]
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        argv = ["env", "-C", str(PROJECT_ROOT), *settings, sys.executable, *command]
        self.workers[role] = ChildProcess(f"the {role}", argv, self._folder / f"{self.name}.{role}.log")
        self.workers[role].start()
        opened = PARTITIONS * len(self.workers)
        wait_until(lambda: self.runs() and len(find_keys(self.store, LEDGERS)) >= opened, START_TIMEOUT_S, role, LOOK_S)

    def runs(self) -> bool:
        """True; raises `BenchError`, with the end of its log, where a worker has ended."""
        for worker in self.workers.values():
            if not worker.is_running:
                raise BenchError(f"{worker.name} ended:\n{tail(worker.log_path)}")
        return True

    def steps_s(self, role: str) -> dict[str, float]:
        """Wall seconds that the worker has spent in each step of its batches, by its own metrics."""
        log = self.workers[role].log_path.read_text()
        ports = re.findall(r'"port": (\d+)', log)
        if not ports:
            raise BenchError(f"the {role} named no metrics port:\n{log}")
        found: dict[str, float] = defaultdict(float)
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                for step, seconds in _STEP.findall(answer.read().decode()):
                    found[step] += float(seconds)
        return dict(found)

    def redis_bytes(self) -> int:
        """The memory that Redis uses, on all its servers."""
        return sum(
            int(dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)["used_memory"])
            for server in self.store.servers()
            for info in server.run([("INFO", "memory")])
        )

    def stop(self) -> None:
        """Ends the workers."""
        for worker in self.workers.values():
            worker.stop(STOP_TIMEOUT_S)


class RedisServers(NamedTuple):
    """A Redis of child processes: one server or a cluster."""

    url: str
    pids: list[int]


@contextmanager
def one_redis() -> Iterator[RedisServers]:
    """One server."""
    with local_redis() as server:
        yield RedisServers(server.url, [server.pid])


@contextmanager
def redis_cluster() -> Iterator[RedisServers]:
    """Three masters with a replica each."""
    with local_redis_cluster() as cluster:
        yield RedisServers(cluster.url, [node.pid for node in cluster.nodes])


@contextmanager
def fresh_deployment(
    name: str,
    bootstrap: str,
    progress: Progress,
    events_topic: str,
    folder: Path,
    policy: Path = W1_POLICY,
    redis: Callable[[], AbstractContextManager[RedisServers]] = one_redis,
) -> Iterator[Deployment]:
    """A deployment with topics of its own and an empty Redis, without workers yet; all of it is gone at the end."""
    with ExitStack() as stack:
        deployment = Deployment(name, bootstrap, stack.enter_context(redis()), events_topic, policy, folder)
        stack.callback(progress.delete, list(deployment.topics.values()))
        stack.callback(deployment.store.close)
        stack.callback(deployment.stop)
        deployment.create_topics()
        yield deployment
