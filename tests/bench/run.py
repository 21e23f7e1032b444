"""One measured run: a fresh deployment counts all events of a preloaded topic, from its start until the last effect is published."""

import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from app.local.processes import PROJECT_ROOT, ChildProcess
from tests.bench import floor
from tests.bench.deployment import PARTITIONS, Deployment
from tests.bench.memory import formula
from tests.bench.meter import Meter
from tests.bench.progress import Progress, wait_until
from tests.bench.report import PARTS

RUN_TIMEOUT_S: Final = 1_800.0
FLOOR_TOPIC: Final = "bench.floor"
EARLY: Final = (1_000_000, 3_000_000)  # the events whose cost the last ones' is held against
GROWTH_EVENTS_MIN: Final = 10_000_000


class Bench(NamedTuple):
    """The Kafka that runs share: its address, its processes, and what is known of its topics."""

    bootstrap: str
    brokers: list[int]
    progress: Progress
    folder: Path

    def count(self, deployment: Deployment, n: int, counters: int = 1) -> dict[str, Any]:
        """Counts the topic's `n` events on so many counter processes and one aggregator."""
        # the aggregator first: it has nothing to read until the counter, whose start begins the interval, publishes
        deployment.start("aggregator")
        empty_bytes = deployment.redis_bytes()
        deployment.start("counter", counters)
        begun = time.monotonic()
        pids = {role: [worker.pid] for role, worker in deployment.workers.items()}
        meter = Meter({**pids, "redis": deployment.redis.pids, "broker": self.brokers})
        meter.start()
        ends = self.progress.ends(deployment.events_topic)
        used: dict[str, float] = {}
        course: list[tuple[int, dict[str, float]]] = [(0, dict.fromkeys(PARTS, 0.0))]

        def is_done() -> bool:
            deployment.runs()
            reached = self.progress.committed(deployment.groups["counter"], deployment.events_topic)
            used.update(meter.read())
            course.append((sum(map(max, reached.values(), [0] * len(reached))), {part: used[part] for part in PARTS}))
            return all(
                reached.get(partition, 0) >= end for partition, end in ends.items()
            ) and self.progress.has_read_all(deployment.groups["aggregator"], deployment.topics["deltas"])

        wall_s = wait_until(is_done, RUN_TIMEOUT_S, f"{deployment.name}: counting") - begun
        a_million = n / 1e6
        faults = meter.faults()
        cpu = {part: used[part] / a_million for part in PARTS}
        redis_bytes = deployment.redis_bytes() - empty_bytes
        expected = formula(deployment)
        return {
            "wall_s": wall_s,
            "events_per_s": n / wall_s,
            "cpu_s_per_million": {**cpu, "total": sum(cpu.values())},
            "growth": growth(course),
            "page_faults_per_million": {part: faults[part] / a_million for part in PARTS},
            "peak_rss_mb": {part: rss for part, rss in meter.peak_rss_mb().items() if part in PARTS},
            "redis_bytes_per_million": redis_bytes / a_million,
            "redis_formula": {**expected, "share": redis_bytes / expected["total"]},
            "broker_cpu_s": used["broker"],
            "others_cpu_s": used["others"],
            "steps_us_per_event": {
                role: {step: seconds / a_million for step, seconds in deployment.steps_s(role).items()}
                for role in deployment.workers
            },
        }

    def floor(self, topic: str, n: int, group: str) -> float:
        """CPU seconds per million of the floor on the same topic."""
        self.progress.recreate([FLOOR_TOPIC], PARTITIONS)
        argv = [sys.executable, "-m", floor.__name__, self.bootstrap, topic, group, FLOOR_TOPIC]
        log = self.folder / f"{group}.log"
        process = ChildProcess("the floor", ["env", "-C", str(PROJECT_ROOT), *argv], log)
        process.start()
        try:
            process.wait_until(lambda: floor.ASSIGNED in log.read_text(), time.monotonic() + 60)
            meter, ends = Meter({"floor": [process.pid]}), self.progress.ends(topic)
            meter.start()
            wait_until(
                lambda: process.pid > 0 and self.progress.has_reached_end(group, topic, ends), RUN_TIMEOUT_S, group
            )
            used_s = meter.read()["floor"]
        finally:
            process.kill()
            self.progress.delete([FLOOR_TOPIC])
        return used_s / n * 1e6


def growth(course: list[tuple[int, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """CPU seconds per million of each part and in total, early and late in a long run, from (events so far, CPU seconds so far)."""
    total = course[-1][0]
    if total < GROWTH_EVENTS_MIN:
        return {}
    events = np.array([reached for reached, _ in course])
    found = {}
    for name, span in {"early": EARLY, "late": (total - (EARLY[1] - EARLY[0]), total)}.items():
        used = {part: np.diff(np.interp(span, events, [cpu[part] for _, cpu in course]))[0] for part in PARTS}
        found[name] = {part: float(cpu_s) / (span[1] - span[0]) * 1e6 for part, cpu_s in used.items()}
        found[name]["total"] = sum(found[name].values())
    return found
