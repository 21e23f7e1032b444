"""Workload W1: its generator, oracle and verifier are other people's programs, run as they are from the peers' folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import Producer

from app.contract import rows
from tests.bench.deployment import PARTITIONS, Deployment
from tests.bench.progress import BenchError, Progress

EVENTS_TOPIC: Final = "w1.events"
ATTRIBUTED_TOPIC: Final = "w1.attributed"
COUNTS_TOPIC: Final = "w1.counts"
PROGRAMS: Final = ("gen_w1.py", "oracle_w1.py", "verify_w1.py")


class Workload:
    """N events of W1 with the given seed, in a topic and a file, and what they add up to."""

    def __init__(self, peers: Path, n: int, seed: int, folder: Path) -> None:
        missing = [name for name in PROGRAMS if not (peers / name).is_file()]
        if missing:
            raise BenchError(
                f"the workload's programs are not in {peers} (missing: {', '.join(missing)}). The benchmark needs the folder with "
                "W1's generator, oracle and verifier: give it with --peers or ONECOUNT_PEERS"
            )
        self.peers, self.n, self.seed = peers, n, seed
        self._lines = folder / f"w1-{n}-{seed}.jsonl"
        self._oracle = folder / f"w1-{n}-{seed}.oracle.json"

    def preload(self, bootstrap: str) -> dict[str, Any]:
        """Fills the topic; the generator's own report."""
        arguments = [
            "--n",
            self.n,
            "--seed",
            self.seed,
            "--bootstrap",
            bootstrap,
            "--topic",
            EVENTS_TOPIC,
            "--recreate",
        ]
        return self._run("gen_w1.py", *arguments, "--partitions", PARTITIONS, "--jsonl", self._lines)

    def compute_oracle(self) -> dict[str, Any]:
        """Computes what the events add up to; the oracle's own report."""
        return self._run("oracle_w1.py", self._lines, self._oracle)

    def verify(self, bootstrap: str) -> dict[str, Any]:
        """Compares the two output topics with the oracle; `exact` in the verifier's report says whether all is equal."""
        arguments = ["--attributed", ATTRIBUTED_TOPIC, "--counts", COUNTS_TOPIC]
        return self._run("verify_w1.py", bootstrap, self._oracle, *arguments, may_fail=True)

    def _run(self, program: str, *arguments: object, may_fail: bool = False) -> dict[str, Any]:
        argv = [sys.executable, str(self.peers / program), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode and not (may_fail and done.stdout.startswith("{")):
            raise BenchError(f"{program} failed (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[0])


def publish_in_w1_format(deployment: Deployment, progress: Progress, bootstrap: str) -> None:
    """Maps the latest rows of both outputs to the workload's topics and format; changes no value."""
    progress.recreate([ATTRIBUTED_TOPIC, COUNTS_TOPIC], PARTITIONS)
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 1_000_000})
    for value in _latest(progress, deployment.topics["attributed"]):
        row = rows.decode_attributed(value)
        if row.status == rows.COUNTED:
            producer.produce(ATTRIBUTED_TOPIC, value, row.user_id.encode())
    for value in _latest(progress, deployment.topics["counts"]):
        row = rows.decode_count(value)
        measures = {"conversions": row.conversions, "value": row.value, "views": row.views, "clicks": row.clicks}
        if any(measures.values()):
            campaign = row.dimensions["campaign_id"]
            key = f"{row.window_start}|{row.platform}|{row.advertiser_id}|{campaign}|{row.conversion_name}"
            producer.produce(COUNTS_TOPIC, orjson.dumps(measures), key.encode())
    if producer.flush(60):
        raise BenchError("the mapped rows could not be produced")


def _latest(progress: Progress, topic: str) -> list[bytes]:
    latest = {message.key(): message.value() for message in progress.read(topic)}
    return [value for value in latest.values() if value is not None]
