"""How fast onecount starts, recovers and rebuilds: `python -m tests.bench.recovery`.

- *start*: from the start of a counter process until the first batch of a waiting backlog is committed.
- *recovery*: from a kill -9 of one of two counters, under load, until every partition's committed offset has moved on again; restarted by the
  supervisor, with static membership and without.
- *rebuild*: state lost, until it is folded anew from the log and compared with what is published; beside counting the same events live, with
  the memory that each took at most.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from app.engine.keys import find_keys
from app.local import LocalServiceError, local_kafka
from app.local.processes import PROJECT_ROOT
from tests.bench.deployment import PARTITIONS, Deployment, fresh_deployment
from tests.bench.meter import peak_rss_mb, tree
from tests.bench.progress import BenchError, Progress, wait_until
from tests.bench.run import RUN_TIMEOUT_S, Bench
from tests.bench.workload import EVENTS_TOPIC, Workload

START_BAR_S: Final = 5.0
RECOVERY_BAR_S: Final = 10.0
RATE: Final = 2_000  # events/s while a worker is killed
LOOK_S: Final = 0.02
SETTLED_S: Final = 5.0
LOAD_S: Final = 120
console = Console()


def main(
    n: Annotated[int, typer.Option(min=1000, help="How many events to count and to rebuild.")] = 1_000_000,
    peers: Annotated[
        Path, typer.Option(envvar="ONECOUNT_PEERS", help="The folder with the workload's programs.")
    ] = PROJECT_ROOT / "../shared/peers",
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Measures start, recovery and rebuild on workload W1."""
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-bench-")))
            kafka = stack.enter_context(local_kafka(heap="1g"))
            progress = Progress(kafka.bootstrap)
            stack.callback(progress.close)
            bench = Bench(kafka.bootstrap, kafka.pids, progress, folder)
            Workload(peers.resolve(), n, 1, folder).preload(kafka.bootstrap)
            found = {"start_s": start_s(bench)} | rebuild(bench, n)
            for name, settings in (("dynamic", {}), ("static", {"ONECOUNT_STATIC_MEMBERSHIP": "true"})):
                found[f"recovery_{name}_s"] = recovery_s(bench, name, settings)
    except (BenchError, LocalServiceError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(2)
    table = Table(title=f"Start, recovery and rebuild; {n:,} events of W1", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,.2f}")
    console.print(table)
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")
    missed = [
        f"{name}: {found[name]:.2f}, the bar is {bar}"
        for name, bar in (("start_s", START_BAR_S), ("recovery_static_s", RECOVERY_BAR_S), ("rebuild_share_of_live", 1))
        if (found[name] < bar if name.startswith("rebuild") else found[name] > bar)
    ]
    for line in missed:
        console.print(f"[red]missed[/] {line}", highlight=False)
    sys.exit(1 if missed else 0)


def start_s(bench: Bench) -> float:
    """Seconds from the start of a counter until its first batch is committed."""
    with fresh_deployment("start", bench.bootstrap, bench.progress, EVENTS_TOPIC, bench.folder) as deployment:
        deployment.start("aggregator")
        begun = time.monotonic()
        deployment.start("counter")
        return wait_until(lambda: sum(_committed(bench, deployment).values()) > 0, 60, "start", LOOK_S) - begun


def rebuild(bench: Bench, n: int) -> dict[str, float]:
    """Events/s of counting live, of a rebuild, and the second as a share of the first, both from the process's start; and the
    most memory (MB) that the counter had while it did so.
    """
    with fresh_deployment("rebuild", bench.bootstrap, bench.progress, EVENTS_TOPIC, bench.folder) as deployment:
        ends = bench.progress.ends(EVENTS_TOPIC)
        deployment.start("aggregator")
        begun = time.monotonic()
        deployment.start("counter")
        live_s = _until_counted(bench, deployment, ends) - begun
        live_mb = _peak_rss_mb(deployment)
        deployment.workers.pop("counter").stop(30)
        emptied = subprocess.run(
            [sys.executable, "-m", "app", "rebuild", "counter"],
            env={**os.environ, **deployment.environment},
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if emptied.returncode:
            raise BenchError(f"rebuild: {emptied.stdout}{emptied.stderr}")
        begun = time.monotonic()
        deployment.start("counter")
        rebuilt_s = wait_until(lambda: _is_rebuilt(deployment, ends), RUN_TIMEOUT_S, "rebuild", LOOK_S) - begun
        rebuilt_mb = _peak_rss_mb(deployment)
    return {
        "live_events_per_s": n / live_s,
        "rebuild_events_per_s": n / rebuilt_s,
        "rebuild_share_of_live": live_s / rebuilt_s,
        "live_peak_rss_mb": live_mb,
        "rebuild_peak_rss_mb": rebuilt_mb,
    }


def _peak_rss_mb(deployment: Deployment) -> float:
    return max(peak_rss_mb(pid) for pid in tree(deployment.workers["counter"].pid))


def recovery_s(bench: Bench, name: str, settings: dict[str, str]) -> float:
    """Seconds from a kill -9 of one of two counters until all partitions move on again."""
    topic = f"recovery.{name}.events"
    bench.progress.recreate([topic], PARTITIONS)
    with fresh_deployment(f"recovery.{name}", bench.bootstrap, bench.progress, topic, bench.folder) as deployment:
        deployment.environment |= settings
        deployment.start("aggregator")
        deployment.start("counter", 2)
        with _load(bench.bootstrap, topic):
            _wait_for_progress(bench, deployment)
            time.sleep(SETTLED_S)
            os.kill(next(pid for pid in tree(deployment.workers["counter"].pid) if _is_worker(pid)), signal.SIGKILL)
            begun = time.monotonic()
            return _wait_for_progress(bench, deployment) - begun


@contextmanager
def _load(bootstrap: str, topic: str) -> Iterator[None]:
    argv = [sys.executable, "-m", "tests.bench.live", bootstrap, topic, str(RATE), str(LOAD_S), "1000000"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=PROJECT_ROOT) as producer:
        try:
            yield
        finally:
            producer.kill()


def _is_worker(pid: int) -> bool:
    return b"--slot" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _committed(bench: Bench, deployment: Deployment) -> dict[int, int]:
    return {
        partition: max(offset, 0)
        for partition, offset in bench.progress.committed(deployment.groups["counter"], deployment.events_topic).items()
    }


def _wait_for_progress(bench: Bench, deployment: Deployment) -> float:
    """When the offsets of all partitions have passed where the log ends now."""
    ends = bench.progress.ends(deployment.events_topic)

    def moved() -> bool:
        reached = _committed(bench, deployment)
        return all(reached.get(partition, 0) > end for partition, end in ends.items())

    return wait_until(moved, 120, "counting", LOOK_S)


def _until_counted(bench: Bench, deployment: Deployment, ends: dict[int, int]) -> float:
    def counted() -> bool:
        deployment.runs()
        return bench.progress.has_reached_end(deployment.groups["counter"], deployment.events_topic, ends)

    return wait_until(counted, RUN_TIMEOUT_S, "counting", LOOK_S)


def _is_rebuilt(deployment: Deployment, ends: dict[int, int]) -> bool:
    """Whether the counter's state holds all events again, and was compared with what is published."""
    deployment.runs()
    ledgers = [key for key in find_keys(deployment.store, "*:ledger") if key.startswith(b"{c")]
    replies = deployment.store.run([("HGETALL", key) for key in ledgers])
    found = [dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in replies]
    reached = sum(int(each.get(f"next:{deployment.events_topic}".encode(), 0)) for each in found)
    return reached >= sum(ends.values()) and not any(b"rebuild" in each for each in found)


if __name__ == "__main__":
    typer.run(main)
