"""The soak: load for MINUTES while faults come at random, then every row is compared, and memory must have stayed flat: a
rebuild, which is when most is held, takes as much at the end as after a sixth of the time. (What the workers hold at random
moments hangs on who has which partitions then.)

Not in CI: `make soak [MINUTES=30] [RATE=12000] [SEED=17]`. The rate is half of what two cores carry of this mix and policy, with
the generator, the broker, Redis and all workers on them; on more cores it is less than half. Event time passes 60 times as fast as the clock
and the policy's lookback windows are short, so that what is kept expires as fast as it comes and "flat" means something; a count
window is half an hour of that time, half a minute of the clock (the delivered minute would be one second of it). Every row of some
22 million events is compared at the end, partition by partition.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import redis

from app.local import LocalKafka, LocalRedis, local_kafka, local_redis
from tests.bench.meter import peak_rss_mb
from tests.faults.redis_state import Place, last_batches, state_offsets
from tests.integration.deployment import POLICY, Deployment, deployed

MINUTES: Final = float(os.environ.get("MINUTES") or 30)
RATE: Final = int(os.environ.get("RATE") or 12_000)
SPEED: Final = 60
PARTITIONS: Final = 16  # the comparison holds a partition's events at once
# Between two faults. At half load a rebuild takes a minute or two: with a fault every 15 s (5 to 25) most rebuilds were cut
# short by the next one, and when the load ended not 5 of 18 million events were counted.
PAUSE_S: Final = (10, 60)
LAST_REBUILD_S: Final = 90.0  # before the load's end
# A rebuild folds the whole log, beside a load that is half of what the two counters can: one of them alone would just keep pace.
REBUILT_S: Final = 1_500.0
GROWTH_MAX: Final = 1.15  # of a rebuild's memory, the log having grown meanwhile
OTHER_TIMES: Final = {"window: 1m": "window: 30m", "30d": "2h", "7d": "2h", "3d": "1h", "1d": "1h"}
SHORT_TIMES: Final = {
    "correction_horizon": "2h",
    "dedup_window": "1h",
    "order_window": "2h",
    "adjustment_window": "2h",
}
WORKERS: Final = (("counter", 0), ("counter", 1), ("aggregator", 0))
Fault = Callable[["Soak"], None]


class Soak:
    """One run: services and workers, all of which may end at any time and are started again."""

    def __init__(self, deployment: Deployment, kafka: LocalKafka, server: LocalRedis, chance: random.Random) -> None:
        self.deployment, self.kafka, self.server, self.chance = deployment, kafka, server, chance
        self.workers = {name: deployment.start(*name) for name in WORKERS}

    def pick(self) -> tuple[str, int]:
        """Whom the next fault hits."""
        return self.chance.choice(WORKERS)

    def restart_the_dead(self) -> None:
        """What a supervisor does; a worker that refuses (exit code 3) is a failure here. SIGTERM ends one that only begins."""
        for name, worker in self.workers.items():
            if worker.poll() is not None:
                assert worker.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), self.deployment.logs()
                self.workers[name] = self.deployment.start(*name)

    def sample(self) -> str:
        """The memory (MB) of each worker and of Redis, in words."""
        found = {f"{role}-{slot}": rss_mb(worker.pid) for (role, slot), worker in self.workers.items()}
        with redis.Redis.from_url(self.server.url, socket_timeout=5) as client:
            found["redis"] = client.info("memory")["used_memory"] / 2**20
        return ", ".join(f"{name} {mb:.0f} MB" for name, mb in found.items())

    def rebuild_mb(self) -> float:
        """The most memory (MB) that two new counters take, together, to rebuild all partitions, while the load goes on."""
        for slot in (0, 1):
            self.deployment.stop(self.workers["counter", slot])
        self.deployment.wait_until(self._has_emptied, "the counters' state is emptied")
        reached = {place: batch.reached for place, batch in last_batches(self.deployment.settings).items()}
        for slot in (0, 1):
            self.workers["counter", slot] = self.deployment.start("counter", slot)
        begun = time.monotonic()
        self.deployment.wait_until(lambda: self._is_rebuilt(reached), "the counters have rebuilt all", REBUILT_S)
        peak_mb = sum(peak_rss_mb(self.workers["counter", slot].pid) for slot in (0, 1))
        topic = self.deployment.settings.events_topics[0]
        records = sum(offset for (name, _), offset in reached.items() if name == topic)
        print(
            f"          {records:,} records rebuilt in {time.monotonic() - begun:.0f} s, {peak_mb:.0f} MB", flush=True
        )
        return peak_mb

    def _has_emptied(self) -> bool:
        return self.deployment.onecount("rebuild", "counter").returncode == 0  # refuses while a dead one is a member

    def _is_rebuilt(self, reached: dict[Place, int]) -> bool:
        settings = self.deployment.settings
        topic = settings.events_topics[0]
        held = state_offsets(self.server.url, settings)
        with redis.Redis.from_url(self.server.url, socket_timeout=5) as client:
            ledgers = [f"{{{settings.tag('c')}{partition}}}:ledger" for partition in range(settings.partitions)]
            is_done = not any(client.hexists(ledger, "rebuild") for ledger in ledgers)
        return is_done and all(
            held[topic, partition] >= reached[topic, partition] for partition in range(settings.partitions)
        )


def kill(soak: Soak) -> None:
    soak.workers[soak.pick()].kill()


def stop(soak: Soak) -> None:
    soak.workers[soak.pick()].terminate()


def pause(soak: Soak) -> None:
    worker = soak.workers[soak.pick()]
    worker.send_signal(signal.SIGSTOP)
    time.sleep(soak.chance.choice([2, 10]))  # shorter and longer than the session timeout
    worker.send_signal(signal.SIGCONT)


def kill_redis(soak: Soak) -> None:
    soak.server.kill()
    time.sleep(soak.chance.choice([0, 3]))
    soak.server.start()


def empty_redis(soak: Soak) -> None:
    with redis.Redis.from_url(soak.server.url, socket_timeout=10) as client:
        client.flushall()


def stall_redis(soak: Soak) -> None:
    os.kill(soak.server.pid, signal.SIGSTOP)
    time.sleep(soak.chance.choice([1, 7]))  # shorter and longer than the request timeout
    os.kill(soak.server.pid, signal.SIGCONT)


def restart_broker(soak: Soak) -> None:
    soak.kafka.stop()
    soak.kafka.start()


def kill_broker(soak: Soak) -> None:
    soak.kafka.kill()
    soak.kafka.start()


FAULTS: Final[tuple[Fault, ...]] = (
    *[kill] * 4,
    *[stop] * 2,
    *[pause] * 2,
    *[kill_redis] * 2,
    stall_redis,
    empty_redis,
    restart_broker,
    kill_broker,
)


@contextmanager
def services() -> Iterator[tuple[LocalKafka, LocalRedis]]:
    with local_kafka() as kafka, local_redis() as server:
        yield kafka, server


@pytest.mark.soak
@pytest.mark.timeout(int(MINUTES * 60 * 3 + 1_800))
def test_half_an_hour_of_random_faults_counts_exactly_in_flat_memory(
    topic_prefix: str, tmp_path: Path, chance: random.Random, seed: int
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(short_windows(POLICY.read_text()))
    with (
        services() as (kafka, server),
        deployed(
            kafka.bootstrap,
            server.url,
            topic_prefix,
            tmp_path,
            policy=str(policy),
            partitions=PARTITIONS,
            request_timeout_ms=5_000,
        ) as deployment,
    ):
        soak = Soak(deployment, kafka, server, chance)
        duration_s = MINUTES * 60
        load = deployment.generate(
            *("--rate", str(RATE), "--speed", str(SPEED), "--duration", str(duration_s), "--seed", str(seed))
        )
        begun = time.monotonic()
        run_faults(soak, load, duration_s / 6)
        before_mb = soak.rebuild_mb()
        run_faults(soak, load, begun + duration_s - LAST_REBUILD_S - time.monotonic())
        after_mb = soak.rebuild_mb()
        assert load.wait(duration_s) == 0, f"events were not delivered\n{soak.deployment.logs()}"
        soak.restart_the_dead()
        begun = time.monotonic()
        report = deployment.finish(REBUILT_S)
        print(
            f"\n{report.produced:,} events, {report.accepted:,} accepted, verified in {time.monotonic() - begun:.0f} s"
            f"\na rebuild took {before_mb:.0f} MB after a sixth of the run, {after_mb:.0f} MB at its end"
        )
        assert after_mb <= before_mb * GROWTH_MAX, "a rebuild takes the more memory the longer onecount has run"


def run_faults(soak: Soak, load: "subprocess.Popen[bytes]", duration_s: float) -> None:
    """For so long, or until the load ends: a fault, a while of peace, a look at the memory."""
    begun = time.monotonic()
    while load.poll() is None and time.monotonic() - begun < duration_s:
        fault = soak.chance.choice(FAULTS)
        print(f"{time.monotonic() - begun:6.0f} s  {fault.__name__}", flush=True)
        fault(soak)
        time.sleep(1)
        soak.restart_the_dead()
        time.sleep(soak.chance.uniform(*PAUSE_S))
        soak.restart_the_dead()
        print(f"          {soak.sample()}", flush=True)


def short_windows(policy: str) -> str:
    """The policy with lookback windows of hours instead of days, and short times to keep things."""
    lines = []
    for line in policy.splitlines():
        if line.split(":")[0] in SHORT_TIMES:
            continue
        for delivered, other in OTHER_TIMES.items():
            line = line.replace(delivered, other)
        lines.append(line)
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in SHORT_TIMES.items())])


def rss_mb(pid: int) -> float:
    """The resident memory of a process now; 0 if it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
