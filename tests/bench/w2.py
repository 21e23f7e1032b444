"""Speed on workload W2, the realistic mix: `python -m tests.bench.w2`.

90 % views, 1 % conversions, ten dimensions, Zipf users and campaigns, repeats with other timestamps, 5 % of the clicks late; from
`app.generate`, checked row by row by `onecount verify`. `--hot-user 0.01` gives one user that share of all events, `--hot-campaign 0.9`
one campaign that share of all touches. Exit code 1 if a row differs, 2 if it cannot run.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from confluent_kafka import Producer
from rich.console import Console

from app.generate.events import LONGEST_STORY_MS, Generated, events
from app.generate.mix import Mix
from app.generate.owner import owner_partition
from app.local import LocalServiceError, local_kafka
from app.local.processes import PROJECT_ROOT
from app.policy.load import load_policy
from tests.bench.deployment import PARTITIONS, Deployment, fresh_deployment, one_redis, redis_cluster
from tests.bench.progress import BenchError, Progress
from tests.bench.report import failures, machine, medians, print_report
from tests.bench.run import Bench

TOPIC: Final = "w2.events"
POLICY: Final = Path(__file__).with_name("w2-policy.yaml")
MIX: Final = Mix(
    views=0.90,
    clicks=0.085,
    engaged_views=0,
    visits=0.002,
    conversions=0.006,  # with their second reports and those that follow late clicks one in a hundred
    shared_reports=0,
    invalid=0.0005,
    advertisers=20,
    campaigns=20,
    users=200_000,
)
KAFKA_HEAP: Final = "1g"
VERIFY_WAIT_S: Final = 120
_USER: Final = re.compile(rb'"user_id":"[^"]*"')
_CAMPAIGN: Final = re.compile(rb'"campaign_id":"[^"]*"')
console = Console()


def main(
    n: Annotated[int, typer.Option(min=1000, help="How many events.")] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="How many times they are counted.")] = 3,
    workers: Annotated[int, typer.Option(min=1, max=PARTITIONS, help="Counter processes.")] = 1,
    brokers: Annotated[int, typer.Option(min=1, help="Kafka brokers.")] = 1,
    cluster: Annotated[bool, typer.Option(help="A Redis Cluster of three masters and three replicas.")] = False,
    hot_user: Annotated[float, typer.Option(min=0, max=1, help="One user's share of all events.")] = 0.0,
    hot_campaign: Annotated[float, typer.Option(min=0, max=1, help="One campaign's share of all touches.")] = 0.0,
    check: Annotated[bool, typer.Option(help="Compare with `onecount verify`.")] = True,
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the generator.")] = 1,
) -> None:
    """Measures onecount on workload W2."""
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecount-bench-")))
            kafka = stack.enter_context(local_kafka(brokers, heap=os.environ.get("KAFKA_HEAP", KAFKA_HEAP)))
            progress = Progress(kafka.bootstrap)
            stack.callback(progress.close)
            bench = Bench(kafka.bootstrap, kafka.pids, progress, folder)
            console.print(f"preloading {n:,} events", highlight=False)
            start_ms = (
                int(time.time() * 1000) - n - LONGEST_STORY_MS
            )  # older records would be deleted by their topics' retention
            preload(kafka.bootstrap, progress, stream(n, seed, start_ms, hot_user, hot_campaign))
            title = f"W2, {n:,} events, {workers} counter and 1 aggregator process"
            found = []
            for at in range(1, runs + 1):
                console.print(f"run {at} of {runs}", highlight=False)
                found.append(_run(f"w2run{at}", bench, n, workers, cluster, check))
            result = {"title": title, "n": n, "machine": machine(), "runs": found, "medians": medians(found)}
    except (BenchError, LocalServiceError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(2)
    print_report(result, console)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if failures(result) else 0)


def stream(n: int, seed: int, start_ms: int, hot_user: float = 0.0, hot_campaign: float = 0.0) -> Iterator[Generated]:
    """W2's records, in the order in which they are sent, one a ms of event time from `start_ms` on."""
    chance = random.Random(seed)
    for record in events(seed, n, start_ms, load_policy(POLICY)[0], MIX):
        key, value, stamp_ms, user, foreign, kind = record
        if value is not None and chance.random() < hot_user:
            user = b"u0000000"
            key, value = key and user, _USER.sub(b'"user_id":"u0000000"', value)
        if value is not None and chance.random() < hot_campaign:
            value = _CAMPAIGN.sub(b'"campaign_id":"hot"', value)
        yield Generated(key, value, stamp_ms, user, foreign, kind)


def preload(bootstrap: str, progress: Progress, records: Iterator[Generated]) -> None:
    """Fills the topic."""
    progress.recreate([TOPIC], PARTITIONS)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "enable.idempotence": True,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for number, (key, value, stamp_ms, user, foreign, _) in enumerate(records):
        owner = owner_partition(user, PARTITIONS, "murmur2")
        producer.produce(TOPIC, value, key, (owner + foreign) % PARTITIONS, timestamp=stamp_ms)
        if number % 1_000 == 0:
            producer.poll(0)
        while len(producer) > 500_000:
            producer.poll(0.1)
    if producer.flush(120):
        raise BenchError("the events could not be produced")


def _run(name: str, bench: Bench, n: int, workers: int, cluster: bool, check: bool) -> dict[str, Any]:
    redis = redis_cluster if cluster else one_redis
    with fresh_deployment(
        name, bench.bootstrap, bench.progress, TOPIC, bench.folder, policy=POLICY, redis=redis
    ) as deployment:
        found = bench.count(deployment, n, workers)
        if check:
            found["verified"] = {"exact": _is_exact(deployment)}
    floor = bench.floor(TOPIC, n, f"{name}.floor")
    found["floor"] = {"cpu_s_per_million": floor, "ratio": found["cpu_s_per_million"]["total"] / floor}
    return found


def _is_exact(deployment: Deployment) -> bool:
    argv = [sys.executable, "-m", "app", "verify", "--wait", str(VERIFY_WAIT_S)]
    environment = {**os.environ, **deployment.environment}
    done = subprocess.run(argv, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout[-3000:] + done.stderr[-2000:], highlight=False)
    return done.returncode == 0


if __name__ == "__main__":
    typer.run(main)
