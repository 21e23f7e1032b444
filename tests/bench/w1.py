"""Speed on workload W1, on one counter and one aggregator process: `python -m tests.bench.w1` (or `make bench`).

Starts its own Kafka and Redis, preloads N events, and measures how long and with how much CPU they are counted; checks the result row by
row against the workload's oracle. Exit code 1 if that differs or the CPU bar is missed, 2 if it cannot run.
"""

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.local import LocalServiceError, local_kafka
from app.local.processes import PROJECT_ROOT
from tests.bench.deployment import fresh_deployment, one_redis, redis_cluster
from tests.bench.latency import measure_latency
from tests.bench.peer import run_kafka_streams
from tests.bench.progress import BenchError, Progress
from tests.bench.report import failures, machine, medians, print_report
from tests.bench.run import Bench
from tests.bench.workload import EVENTS_TOPIC, Workload, publish_in_w1_format

FAILED: Final = 1
CANNOT_RUN: Final = 2
KAFKA_HEAP: Final = "1g"
SLOW_RATE: Final = 100.0  # events/s of the second latency measurement
SLOW_S: Final = 60.0
FAST_S: Final = 45.0
console = Console()


def main(
    n: Annotated[int, typer.Option(min=1000, help="How many events.")] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="How many times they are counted.")] = 3,
    peers: Annotated[
        Path, typer.Option(envvar="ONECOUNT_PEERS", help="The folder with the workload's programs.")
    ] = PROJECT_ROOT / "../shared/peers",
    latency: Annotated[bool, typer.Option(help="Measure latencies too (about two minutes).")] = True,
    oracle: Annotated[bool, typer.Option(help="Compare with the oracle, which holds all events in memory.")] = True,
    peer: Annotated[str | None, typer.Option(help="kafka-streams: run it too, in turn with onecount.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=4, help="Counter processes.")] = 1,
    brokers: Annotated[int, typer.Option(min=1, help="Kafka brokers.")] = 1,
    cluster: Annotated[bool, typer.Option(help="A Redis Cluster of three masters and three replicas.")] = False,
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
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-bench-")))
            kafka = stack.enter_context(local_kafka(brokers, heap=os.environ.get("KAFKA_HEAP", KAFKA_HEAP)))
            progress = Progress(kafka.bootstrap)
            stack.callback(progress.close)
            bench = Bench(kafka.bootstrap, kafka.pids, progress, folder)
            workload = Workload(peers.resolve(), n, seed, folder)
            console.print(f"preloading {n:,} events", highlight=False)
            result: dict[str, Any] = {
                "title": f"W1, {n:,} events, {workers} counter and 1 aggregator process",
                "n": n,
                "machine": machine(),
                "generator": workload.preload(kafka.bootstrap),
            }
            if oracle:
                result["oracle"] = workload.compute_oracle()
            found, peer_runs = [], []
            for at in range(1, runs + 1):
                console.print(f"run {at} of {runs}", highlight=False)
                found.append(_run(f"w1run{at}", bench, workload, oracle, workers, cluster, profile))
                if peer:
                    peer_runs.append(run_kafka_streams(workload, kafka.bootstrap, kafka.pids[0], folder))
            result |= {"runs": found, "medians": medians(found)}
            if peer:
                result["peer"] = {"runs": peer_runs, "ratios": _ratios(peer_runs, result["medians"])}
            if latency:
                fast = result["medians"]["events_per_s"] / 2
                result["latency"] = [
                    measure_latency(name, kafka.bootstrap, progress, rate, seconds, folder, bars_ms)
                    for name, rate, seconds, bars_ms in (
                        ("w1fast", fast, FAST_S, {"p50": 400, "p99": 1000}),
                        ("w1slow", SLOW_RATE, SLOW_S, {"p50": 500, "p99": 500}),
                    )
                ]
    except (BenchError, LocalServiceError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(CANNOT_RUN)
    print_report(result, console)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(FAILED if failures(result) else 0)


def _run(
    name: str, bench: Bench, workload: Workload, oracle: bool, workers: int, cluster: bool, profiles: Path | None
) -> dict[str, Any]:
    """Counts all events on a fresh deployment, checks them against the oracle, and runs the floor beside it."""
    redis = redis_cluster if cluster else one_redis
    with fresh_deployment(name, bench.bootstrap, bench.progress, EVENTS_TOPIC, bench.folder, redis=redis) as deployment:
        deployment.profiles = profiles
        found = bench.count(deployment, workload.n, workers)
        if oracle:
            publish_in_w1_format(deployment, bench.progress, bench.bootstrap)
            found["verified"] = workload.verify(bench.bootstrap)
    floor = bench.floor(EVENTS_TOPIC, workload.n, f"{name}.floor")
    found["floor"] = {"cpu_s_per_million": floor, "ratio": found["cpu_s_per_million"]["total"] / floor}
    return found


def _ratios(peer_runs: list[dict[str, Any]], ours: dict[str, Any]) -> dict[str, float]:
    """The medians of ours over those of the peer."""
    theirs = {name: median(run[name] for run in peer_runs) for name in ("cpu_s_per_million", "events_per_s")}
    return {
        "cpu_s_per_million": ours["cpu_s_per_million"]["total"] / theirs["cpu_s_per_million"],
        "events_per_s": ours["events_per_s"] / theirs["events_per_s"],
    }


if __name__ == "__main__":
    typer.run(main)
