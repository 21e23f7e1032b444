"""Speed on workload W1, on one counter and one aggregator process: `python -m tests.bench.w1` (or `make bench`).

Starts its own Kafka and Redis, preloads N events, and measures how long and with how much CPU they are counted; checks the result row by
row against the workload's oracle. Exit code 1 if that differs or the CPU bar is missed, 2 if it cannot run.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.local import LocalServiceError, local_kafka
from app.local.processes import PROJECT_ROOT, ChildProcess
from tests.bench import floor
from tests.bench.deployment import PARTITIONS, Deployment, fresh_deployment
from tests.bench.latency import measure_latency
from tests.bench.meter import Meter
from tests.bench.peer import run_kafka_streams
from tests.bench.progress import BenchError, Progress, wait_until
from tests.bench.report import PARTS, failures, machine, medians, print_report
from tests.bench.workload import EVENTS_TOPIC, Workload, publish_in_w1_format

FAILED: Final = 1
CANNOT_RUN: Final = 2
KAFKA_HEAP: Final = "1g"
RUN_TIMEOUT_S: Final = 900.0
FLOOR_TOPIC: Final = "w1.floor"
SLOW_RATE: Final = 100.0  # events/s of the second latency measurement
SLOW_S: Final = 60.0
FAST_S: Final = 30.0
console = Console()


def main(
    n: Annotated[int, typer.Option(min=1000, help="How many events.")] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="How many times they are counted.")] = 3,
    peers: Annotated[
        Path, typer.Option(envvar="ONECOUNT_PEERS", help="The folder with the workload's programs.")
    ] = PROJECT_ROOT / "../shared/peers",
    latency: Annotated[bool, typer.Option(help="Measure latencies too (about two minutes).")] = True,
    peer: Annotated[str | None, typer.Option(help="kafka-streams: run it too, in turn with onecount.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Run the workers under cProfile; results to this folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the workload's generator.")] = 1,
) -> None:
    """Measures onecount on workload W1."""
    if peer not in (None, "kafka-streams"):
        raise typer.BadParameter(f"{peer!r}: only kafka-streams is known", param_hint="--peer")
    if profile is not None:
        profile = profile.resolve()
        profile.mkdir(parents=True, exist_ok=True)
    try:
        result = _measure(n, runs, peers.resolve(), seed, latency, peer is not None, profile)
    except (BenchError, LocalServiceError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(CANNOT_RUN)
    print_report(result, console)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(FAILED if failures(result) else 0)


def _measure(
    n: int, runs: int, peers: Path, seed: int, latency: bool, with_peer: bool, profiles: Path | None
) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-bench-")))
        workload = Workload(peers, n, seed, folder)
        kafka = stack.enter_context(local_kafka(heap=os.environ.get("KAFKA_HEAP", KAFKA_HEAP)))
        progress = Progress(kafka.bootstrap)
        stack.callback(progress.close)
        bench = _Bench(workload, kafka.bootstrap, kafka.pids[0], progress, folder, profiles)
        console.print(f"preloading {n:,} events", highlight=False)
        result: dict[str, Any] = {
            "n": n,
            "seed": seed,
            "machine": machine(),
            "generator": workload.preload(kafka.bootstrap),
        }
        result["oracle"] = workload.compute_oracle()
        found, peer_runs = [], []
        for at in range(1, runs + 1):
            console.print(f"run {at} of {runs}", highlight=False)
            found.append(bench.run(f"w1run{at}"))
            if with_peer:
                peer_runs.append(run_kafka_streams(workload, kafka.bootstrap, kafka.pids[0], folder))
        result |= {"runs": found, "medians": medians(found)}
        if with_peer:
            theirs = median(run["cpu_s_per_million"] for run in peer_runs)
            result["peer"] = {"runs": peer_runs, "ratio": theirs / result["medians"]["cpu_s_per_million"]["total"]}
        if latency:
            fast = result["medians"]["events_per_s"] / 2
            result["latency"] = [
                measure_latency(name, kafka.bootstrap, progress, rate, seconds, folder)
                for name, rate, seconds in (("w1fast", fast, FAST_S), ("w1slow", SLOW_RATE, SLOW_S))
            ]
        return result


class _Bench:
    """Runs the preloaded workload."""

    def __init__(
        self, workload: Workload, bootstrap: str, broker: int, progress: Progress, folder: Path, profiles: Path | None
    ) -> None:
        self.workload, self.bootstrap, self.broker = workload, bootstrap, broker
        self.progress, self.folder, self.profiles = progress, folder, profiles

    def run(self, name: str) -> dict[str, Any]:
        """Counts all events on a fresh deployment, checks them against the oracle, and runs the floor beside it."""
        with fresh_deployment(name, self.bootstrap, self.progress, EVENTS_TOPIC, self.folder) as deployment:
            deployment.profiles = self.profiles
            found = self._count(deployment)
            publish_in_w1_format(deployment, self.progress, self.bootstrap)
            found["verified"] = self.workload.verify(self.bootstrap)
        found["floor"] = {"cpu_s_per_million": self._floor(f"{name}.floor")}
        found["floor"]["ratio"] = found["cpu_s_per_million"]["total"] / found["floor"]["cpu_s_per_million"]
        return found

    def _count(self, deployment: Deployment) -> dict[str, Any]:
        # the aggregator first: it has nothing to read until the counter, whose start begins the interval, publishes
        deployment.start("aggregator")
        empty_bytes = deployment.client.info("memory")["used_memory"]
        deployment.start("counter")
        begun = time.monotonic()
        pids = {role: worker.pid for role, worker in deployment.workers.items()}
        meter = Meter({**pids, "redis": deployment.server.pid, "broker": self.broker})
        meter.start()
        ends = self.progress.ends(EVENTS_TOPIC)
        used: dict[str, float] = {}
        faults: dict[str, int] = {}

        def is_done() -> bool:
            deployment.runs()
            if not self.progress.has_reached_end(deployment.groups["counter"], EVENTS_TOPIC, ends):
                return False
            used.update(meter.read())
            faults.update(meter.faults())
            return self.progress.has_read_all(deployment.groups["aggregator"], deployment.topics["deltas"])

        wall_s = wait_until(is_done, RUN_TIMEOUT_S, f"{deployment.name}: counting") - begun
        a_million = self.workload.n / 1e6
        cpu = {part: used[part] / a_million for part in PARTS}
        return {
            "wall_s": wall_s,
            "events_per_s": self.workload.n / wall_s,
            "cpu_s_per_million": {**cpu, "total": sum(cpu.values())},
            "page_faults_per_million": {part: faults[part] / a_million for part in PARTS},
            "peak_rss_mb": {part: rss for part, rss in meter.peak_rss_mb().items() if part in PARTS},
            "redis_bytes_per_million": (deployment.client.info("memory")["used_memory"] - empty_bytes) / a_million,
            "broker_cpu_s": used["broker"],
            "others_cpu_s": used["others"],
            "steps_us_per_event": {
                role: {step: seconds / a_million for step, seconds in deployment.steps_s(role).items()}
                for role in deployment.workers
            },
        }

    def _floor(self, group: str) -> float:
        self.progress.recreate([FLOOR_TOPIC], PARTITIONS)
        argv = [sys.executable, "-m", floor.__name__, self.bootstrap, EVENTS_TOPIC, group, FLOOR_TOPIC]
        log = self.folder / f"{group}.log"
        process = ChildProcess("the floor", ["env", "-C", str(PROJECT_ROOT), *argv], log)
        process.start()
        try:
            process.wait_until(lambda: floor.ASSIGNED in log.read_text(), time.monotonic() + 60)
            meter, ends = Meter({"floor": process.pid}), self.progress.ends(EVENTS_TOPIC)
            meter.start()
            wait_until(
                lambda: process.pid > 0 and self.progress.has_reached_end(group, EVENTS_TOPIC, ends),
                RUN_TIMEOUT_S,
                group,
            )
            used_s = meter.read()["floor"]
        finally:
            process.kill()
            self.progress.delete([FLOOR_TOPIC])
        return used_s / self.workload.n * 1e6


if __name__ == "__main__":
    typer.run(main)
