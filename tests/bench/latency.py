"""How long it takes from an event's production until what it changed can be read, read_committed, from the output topics."""

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from app.contract import rows
from app.local.processes import PROJECT_ROOT
from tests.bench.deployment import PARTITIONS, fresh_deployment
from tests.bench.live import PROBE
from tests.bench.meter import Meter
from tests.bench.progress import BenchError, Progress, wait_until

# Events produced in the first seconds are left out: clients connect, and a fresh broker compiles its code on the same cores.
WARM_UP_S: Final = 15.0
DRAIN_S: Final = 30.0
PROBES_A_S: Final = 200  # at most; each is a campaign of its own, which must stay a small part of the work
PERCENTILES: Final = (50, 95, 99)
_PROBE = re.compile(PROBE.encode() + rb"(\d+)-\d+")


def measure_latency(
    name: str, bootstrap: str, progress: Progress, rate: float, seconds: float, folder: Path, bars_ms: dict[str, float]
) -> dict[str, Any]:
    """Runs a fresh deployment under a steady rate (events/s); latencies in ms of conversions and of touches in the counts."""
    events_topic = f"{name}.events"
    progress.recreate([events_topic], PARTITIONS)
    with fresh_deployment(name, bootstrap, progress, events_topic, folder) as deployment:
        for role in ("aggregator", "counter"):
            deployment.start(role)
        pids = {role: [worker.pid] for role, worker in deployment.workers.items()}
        meter = Meter({**pids, "redis": deployment.redis.pids})
        outputs = [deployment.topics["attributed"], deployment.topics["counts"]]
        observer = _Observer(bootstrap, outputs)
        probe_every = max(1, round(rate / PROBES_A_S)) if rate > PROBES_A_S else 2
        argv = [sys.executable, "-m", "tests.bench.live", bootstrap, events_topic, rate, seconds, probe_every]
        meter.start()
        with subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT) as producer:
            try:
                while producer.poll() is None:
                    observer.look()
                sent = json.loads(producer.stdout.read())  # type: ignore[union-attr]
            finally:
                producer.kill()
        with suppress(BenchError):  # whoever is missing is reported
            wait_until(lambda: observer.look() or observer.has_seen(sent), DRAIN_S, "the last rows", every_s=0)
        observer.close()
        cpu = {part: used / sent["events"] * 1e6 for part, used in meter.read().items() if part != "others"}
    progress.delete([events_topic])
    return {
        "rate_wanted": round(rate),
        "bars_ms": bars_ms,
        "rate": round(sent["events"] / sent["seconds"]),
        "cpu_s_per_million": cpu,
        **observer.report(sent),
    }


class _Observer:
    """Reads the outputs as they become readable, with the wall clock beside it."""

    def __init__(self, bootstrap: str, topics: list[str]) -> None:
        self._attributed = topics[0]
        self._seen: dict[str, dict[bytes, tuple[float, float]]] = {"conversions": {}, "counts": {}}
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "w1-bench-observer",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.assign([TopicPartition(topic, part, 0) for topic in topics for part in range(PARTITIONS)])

    def look(self) -> None:
        """Takes in what has become readable; waits a moment for the first of it."""
        messages = self._consumer.consume(1, 0.01)
        if messages:
            messages += self._consumer.consume(5_000, 0)
        now_ms = time.time() * 1000
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise BenchError(f"reading the outputs: {error}")
            if error is None:
                self._note(message, now_ms)

    def _note(self, message: Message, now_ms: float) -> None:
        key = message.key()
        if message.topic() == self._attributed:
            if message.value() is not None:
                produced_ms = rows.decode_attributed(message.value()).event_time
                self._seen["conversions"].setdefault(key, (produced_ms, now_ms))
            return
        probe = _PROBE.search(key)
        if probe and b'""' in key:  # the touch's own row; a conversion credited to a probe has another
            self._seen["counts"].setdefault(key, (float(probe[1]), now_ms))

    def has_seen(self, sent: dict[str, Any]) -> bool:
        """Whether a row of every conversion and probe has been read."""
        return self._missing(sent) == {"conversions": 0, "counts": 0}

    def _missing(self, sent: dict[str, Any]) -> dict[str, int]:
        return {
            "conversions": sent["conversions"] - len(self._seen["conversions"]),
            "counts": sent["probes"] - len(self._seen["counts"]),
        }

    def report(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Percentiles in ms, how many events they are of, and how many never came (which must be none)."""
        found: dict[str, Any] = {}
        steady_ms = sent["begun_ms"] + WARM_UP_S * 1000
        for name, seen in self._seen.items():
            waits = np.array([read - made for made, read in seen.values() if made >= steady_ms])
            found[name] = {"events": len(waits), "missing": self._missing(sent)[name]}
            if len(waits):
                found[name] |= {f"p{at}_ms": round(float(np.percentile(waits, at)), 1) for at in PERCENTILES}
                found[name]["max_ms"] = round(float(waits.max()), 1)
        return found

    def close(self) -> None:
        """Closes the consumer."""
        self._consumer.close()
