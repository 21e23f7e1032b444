"""How fast the gateway is: pixels and batches of events by wrk over loopback, on a real Kafka and Redis on the same machine.

Each figure stands beside that of an empty handler of the same framework, server and size of request in the same run, so that
another machine can be compared. `make bench-gateway`; needs wrk.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psutil
import uvicorn
from confluent_kafka import Consumer, TopicPartition
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.gateway.answers import GIF
from app.gateway.protocol import GuardedProtocol
from app.local import local_kafka, local_redis
from app.local.processes import pick_ports
from tests.gateway.harness import KEY, ORIGIN, Gateway
from tests.integration.deployment import deployed

SCRIPT: Final = Path(__file__).with_name("gateway.lua")
CONNECTIONS: Final = {"pixel": 32, "events": 2}  # as fast as it goes
PACED: Final = {"pixel": (64, 20), "events": (16, 140)}  # connections, and the pause (ms) of each between two requests
GATEWAYS: Final = 2  # that share the paced load
BATCH: Final = 100
WANTED: Final = {"pixel": 2_500, "events": 10_000}
P99_MS: Final = 50.0
_UNITS_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Load(NamedTuple):
    """What one wrk saw: events a second, the 99th percentile of the answers' times, and the server's CPU by event."""

    per_s: float
    p99_ms: float
    cpu_us: float
    failed: int

    def __str__(self) -> str:
        return f"{self.per_s:>9,.0f}/s  p99 {self.p99_ms:6.1f} ms  {self.cpu_us:6.1f} us CPU each  {self.failed} failed"


def load(url: str, pids: Sequence[int], kind: str, seconds: int, is_paced: bool = False) -> Load:
    """One wrk against a server, as fast as it goes, or at a pace a little above what is wanted."""
    connections, pause_ms = PACED[kind] if is_paced else (CONNECTIONS[kind], 0)
    size = BATCH if kind == "events" else 1
    before_s = cpu_seconds(pids)
    arguments = [kind, str(size), str(time.time_ns() // 1_000_000), KEY if kind == "events" else ORIGIN, str(pause_ms)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(SCRIPT), url, "--"]
    said = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout
    cpu_s = cpu_seconds(pids) - before_s
    requests = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
    took = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    timeouts = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    assert took is not None, said
    return Load(
        per_s=requests * size / seconds,
        p99_ms=float(took[1]) * _UNITS_MS[took[2]],
        cpu_us=cpu_s / max(requests * size, 1) * 1e6,
        failed=(int(errors[1]) if errors else 0) + (sum(map(int, timeouts.groups())) if timeouts else 0),
    )


def cpu_seconds(pids: Sequence[int]) -> float:
    """What the processes have used so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


@contextmanager
def empty_server() -> Iterator[tuple[str, int]]:
    """The same framework and server with handlers that do nothing; its address and process id."""
    (port,) = pick_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.gateway", "--empty", str(port)])
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def serve_empty(port: int) -> None:
    """The empty handlers: an image, and an answer to a body that was read."""

    async def image(request: Request) -> Response:
        return Response(GIF, media_type="image/gif")

    async def body(request: Request) -> Response:
        await request.body()
        return Response(b"{}", 202, media_type="application/json")

    routes = [Route("/p.gif", image), Route("/v1/events", body, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=port, http=GuardedProtocol, access_log=False, log_level="warning")


def produced(bootstrap: str, topic: str) -> int:
    """How many records the topic has."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench"})
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        return sum(consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in partitions)
    finally:
        consumer.close()


async def together(gateways: Sequence[Gateway], seconds: int) -> dict[str, Load]:
    """Both kinds at once, each at its pace, on gateways that share a port."""
    url, pids = gateways[0].url, [each.process.pid for each in gateways]
    addresses = {"pixel": f"{url}/p.gif", "events": f"{url}/v1/events"}
    found = await asyncio.gather(
        *(asyncio.to_thread(load, address, pids, kind, seconds, True) for kind, address in addresses.items())
    )
    return dict(zip(addresses, found, strict=True))


def accepted(gateway: Gateway) -> int:
    """How many events the gateway says that Kafka has, by its metrics."""
    port = next(json.loads(line)["port"] for line in gateway.log.read_text().splitlines() if '"metrics"' in line)
    said = gateway.session.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    answered = re.findall(r'onecount_gateway_events_total\{door="[^"]+",outcome="accepted"\} (\S+)', said)
    taken = re.findall(r'onecount_gateway_pixels_total\{outcome="taken"\} (\S+)', said)
    lost = re.findall(r"(?m)^onecount_gateway_lost_pixels_total (\S+)", said)
    return int(sum(map(float, answered + taken)) - sum(map(float, lost)))


def measure(seconds: int, rounds: int) -> bool:
    """Prints the figures; whether they are good enough."""
    with (
        tempfile.TemporaryDirectory() as name,
        local_kafka() as kafka,
        local_redis() as redis,
        deployed(kafka.bootstrap, redis.url, "bench", Path(name)) as deployment,
        empty_server() as (empty, pid),
    ):
        gateway = Gateway(deployment, metrics_port=0).ready()
        runs: dict[str, list[Load]] = {"pixel": [], "events": [], "empty pixel": [], "empty events": []}
        for _ in range(rounds):
            for kind, path in (("pixel", "/p.gif"), ("events", "/v1/events")):
                runs[f"empty {kind}"].append(load(empty + path, [pid], kind, seconds))
                runs[kind].append(load(gateway.url + path, [gateway.process.pid], kind, seconds))
        (port,) = pick_ports(1)
        shared = {"gateway_port": port, "gateway_share_port": True, "metrics_port": 0}
        pair = [Gateway(deployment, **shared).ready() for _ in range(GATEWAYS)]
        both = asyncio.run(together(pair, seconds))
        time.sleep(1)
        told, there = (
            sum(accepted(each) for each in (gateway, *pair)),
            produced(kafka.bootstrap, deployment.settings.events_topics[0]),
        )
        rss = psutil.Process(gateway.process.pid).memory_info().rss
    return _report(runs, both, told, there, rss)


def _report(runs: dict[str, list[Load]], both: dict[str, Load], told: int, there: int, rss: int) -> bool:
    for name, loads in runs.items():
        for each in loads:
            print(f"{name:13} {each}")
    is_good = there == told
    for kind in ("pixel", "events"):
        own, empty = (median(each.per_s for each in runs[key]) for key in (kind, f"empty {kind}"))
        worst = max(each.p99_ms for each in runs[kind])
        is_good &= own >= WANTED[kind] and worst < P99_MS and not any(each.failed for each in runs[kind])
        print(f"{kind}: {own:,.0f}/s, {own / empty:.3f} of the empty handler's; p99 {worst:.1f} ms at worst")
    for kind, paced in both.items():
        is_good &= not paced.failed
        print(f"both at their pace on {GATEWAYS} gateways, {kind:6} {paced}")
    print(
        f"acknowledged {told:,}, in Kafka {there:,}; {rss / 2**20:.0f} MiB resident; {os.cpu_count()} cores for all of it"
    )
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--empty", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.empty:
        serve_empty(arguments.empty)
        return 0
    if shutil.which("wrk") is None:
        print("wrk is missing: apt-get install wrk")
        return 2
    return 0 if measure(arguments.seconds, arguments.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
