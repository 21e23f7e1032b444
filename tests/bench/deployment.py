"""One fresh onecount for a measurement: its topics, groups, Redis and worker processes."""

import os
import re
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import redis

from app.local import LocalRedis, local_redis
from app.local.processes import PROJECT_ROOT, ChildProcess, tail
from tests.bench.progress import BenchError, Progress, wait_until

PARTITIONS: Final = 4  # of workload W1
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
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

    def __init__(self, name: str, bootstrap: str, server: LocalRedis, events_topic: str, folder: Path) -> None:
        self.name = name
        self.events_topic = events_topic
        self.server = server
        self.client = redis.Redis.from_url(server.url)
        self.topics = {role: f"{name}.{topic}" for role, topic in _TOPICS.items()}
        self.groups = {role: f"{name}.{role}" for role in ROLES}
        self.workers: dict[str, ChildProcess] = {}
        self.profiles: Path | None = None
        self._folder = folder
        self._environment = {
            "ONECOUNT_BOOTSTRAP": bootstrap,
            "ONECOUNT_REDIS_URL": server.url,
            "ONECOUNT_POLICY": str(Path(__file__).with_name("w1-policy.yaml")),
            "ONECOUNT_EVENTS_TOPICS": events_topic,
            "ONECOUNT_PARTITIONS": str(PARTITIONS),
            "ONECOUNT_METRICS_PORT": "0",
            **{f"ONECOUNT_{role.upper()}_TOPIC": topic for role, topic in self.topics.items()},
            **{f"ONECOUNT_{role.upper()}_GROUP": group for role, group in self.groups.items()},
        }

    def create_topics(self) -> None:
        """Creates the topics that are missing, as an operator would."""
        argv = [sys.executable, "-m", "app", "topics", "create"]
        environment = {**os.environ, **self._environment}
        done = subprocess.run(argv, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"topics create: {done.stdout}{done.stderr}")

    def start(self, role: str) -> None:
        """Starts a worker, and returns as soon as its partitions are open."""
        command = ["-m", "app", "run", role]
        if self.profiles is not None:
            command = ["-m", "tests.bench.profiled", str(self.profiles / f"{self.name}.{role}.prof"), "run", role]
        settings = [f"{name}={value}" for name, value in self._environment.items()]
        argv = ["env", "-C", str(PROJECT_ROOT), *settings, sys.executable, *command]
        self.workers[role] = ChildProcess(f"the {role}", argv, self._folder / f"{self.name}.{role}.log")
        self.workers[role].start()
        opened = PARTITIONS * len(self.workers)
        wait_until(lambda: self.runs() and len(self.client.keys(LEDGERS)) >= opened, START_TIMEOUT_S, role, LOOK_S)

    def runs(self) -> bool:
        """True; raises `BenchError`, with the end of its log, where a worker has ended."""
        for worker in self.workers.values():
            if not worker.is_running:
                raise BenchError(f"{worker.name} ended:\n{tail(worker.log_path)}")
        return True

    def steps_s(self, role: str) -> dict[str, float]:
        """Wall seconds that the worker has spent in each step of its batches, by its own metrics."""
        log = self.workers[role].log_path.read_text()
        port = re.search(r'"port": (\d+)', log)
        if port is None:
            raise BenchError(f"the {role} named no metrics port:\n{log}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=10) as answer:
            found: dict[str, float] = defaultdict(float)
            for step, seconds in _STEP.findall(answer.read().decode()):
                found[step] += float(seconds)
        return dict(found)

    def stop(self) -> None:
        """Ends the workers."""
        for worker in self.workers.values():
            worker.stop(STOP_TIMEOUT_S)


@contextmanager
def fresh_deployment(
    name: str, bootstrap: str, progress: Progress, events_topic: str, folder: Path
) -> Iterator[Deployment]:
    """A deployment with topics of its own and an empty Redis, without workers yet; all of it is gone at the end."""
    with ExitStack() as stack:
        deployment = Deployment(name, bootstrap, stack.enter_context(local_redis()), events_topic, folder)
        stack.callback(progress.delete, list(deployment.topics.values()))
        stack.callback(deployment.client.close)
        stack.callback(deployment.stop)
        deployment.create_topics()
        yield deployment
