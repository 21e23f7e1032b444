"""Time as it goes wrong: events out of order, workers whose clocks are wrong, events from the future, a month at once."""

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import orjson
import pytest
import redis

from app.generate import Mix, events
from app.policy.load import load_policy
from tests.conftest import Services
from tests.faults.clock import WrongClock
from tests.faults.feed import (
    Sent,
    brisk_policy,
    corrected_after_final,
    count_upserts,
    feeding,
    last_final_ms,
    located,
    marks,
    now_ms,
    send,
)
from tests.faults.test_soak import GROWTH_MAX, rss_mb
from tests.integration.deployment import Deployment, deployed

MINUTE_MS = 60_000
HOUR_S = 3_600
DAY_MS = 86_400_000
MONTH_EVENTS = 60_000
MONTH_EVENTS_PER_S = MONTH_EVENTS / (30 * 86_400)
SKEW_MS = 300_000  # max_clock_skew, which the policy leaves at its default


@pytest.fixture
def brisk(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose windows become final within seconds."""
    with deployed(
        services.bootstrap, services.redis_url, topic_prefix, tmp_path, policy=str(brisk_policy(tmp_path))
    ) as running:
        yield running


# --- Disorder


@pytest.mark.timeout(200)
@pytest.mark.parametrize("disorder_s", [30, 1_200], ids=["within the lateness", "beyond the lateness"])
def test_events_out_of_order_are_counted_where_they_belong(
    deployment: Deployment, chance: random.Random, seed: int, disorder_s: int
) -> None:
    """Windows are final a minute after their end; what comes later corrects them, what comes earlier does not."""
    deployment.start("counter")
    deployment.start("aggregator")
    policy = load_policy(deployment.settings.policy)[0]
    # no record that the generator itself sends late: all disorder is this test's
    punctual = Mix(
        late_clicks=0,
        second_reports=0,
        shared_reports=0,
        adjustments=0,
        other_platform_reports=0,
        repeats=0,
        foreign=0,
        visited_before=0,
    )
    begun_ms = now_ms() - 60 * MINUTE_MS
    ordered = list(located(deployment, events(seed, 24_000, begun_ms, policy, punctual, 12)))
    ordered.sort(key=lambda record: record.timestamp_ms + chance.uniform(0, disorder_s * 1000))
    for start in range(0, len(ordered), 400):  # many small batches, or the disorder would end inside of them
        send(deployment, ordered[start : start + 400])
        time.sleep(0.1)
    with deployment.load(seed=seed + 1):
        deployment.wait_until(lambda: last_final_ms(deployment) > begun_ms + 20 * MINUTE_MS, "windows become final")
        corrected = corrected_after_final(deployment)
        time.sleep(2)
    deployment.finish()
    assert (corrected > 1_000) if disorder_s > 60 else (corrected == 0)


# --- Clocks


def told_offsets_s(deployment: Deployment, role: str, slot: int = 0) -> list[float]:
    """By how much each time in a worker's log is ahead of when that file was last written."""
    path = deployment.folder / f"{role}-{slot}.log"
    written_s = path.stat().st_mtime
    return [datetime.fromisoformat(line["timestamp"]).timestamp() - written_s for line in deployment.events(role, slot)]


def assert_no_session_ended(deployment: Deployment, role: str, slot: int = 0) -> None:
    ended = [line for line in deployment.events(role, slot) if line["event"].startswith("session ended")]
    assert not ended, ended


def assert_no_watermark_ahead(deployment: Deployment) -> None:
    """While events come, their times alone move the watermarks: never beyond now plus the skew that events may have."""
    assert max(mark.watermark_ms for mark in marks(deployment)) <= now_ms() + SKEW_MS


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("counter_h", "aggregator_h"), [(2, -2), (-2, 2), (1, 1)])
def test_workers_whose_clocks_are_hours_off_count_exactly(
    deployment: Deployment, seed: int, tmp_path: Path, counter_h: int, aggregator_h: int
) -> None:
    """More than the hour by which a broker lets a record's time be ahead of its own. The next counter's is off the
    other way.
    """
    offsets_s = {
        ("counter", 0): counter_h * HOUR_S,
        ("counter", 1): -counter_h * HOUR_S,
        ("aggregator", 0): aggregator_h * HOUR_S,
    }

    def start(role: str, slot: int) -> "subprocess.Popen[bytes]":
        clock = WrongClock(tmp_path, f"{role}-{slot}", offsets_s[role, slot])
        with clock.worn_by(deployment):
            return deployment.start(role, slot)

    first = start("counter", 0)
    start("aggregator", 0)
    with deployment.load(seed=seed):
        deployment.wait_until(lambda: len(marks(deployment)) > 40, "it counts")
        first.kill()
        first.wait()
        start("counter", 1)
        deployment.wait_until(lambda: len(deployment.owned("counter", 1)) == 4, "the next counter owns all")
        time.sleep(5)
        assert_no_watermark_ahead(deployment)
    deployment.finish()
    for (role, slot), offset_s in offsets_s.items():
        assert all(abs(told_s - offset_s) < 240 for told_s in told_offsets_s(deployment, role, slot)), role
        assert_no_session_ended(deployment, role, slot)


@pytest.mark.timeout(240)
def test_workers_whose_clocks_jump_count_exactly(
    deployment: Deployment, chance: random.Random, seed: int, tmp_path: Path
) -> None:
    clock = WrongClock(tmp_path, "jumping", 0)
    with clock.worn_by(deployment):
        deployment.start("counter")
        deployment.start("aggregator")
    with deployment.load(seed=seed):
        deployment.wait_until(lambda: len(marks(deployment)) > 20, "it counts")
        for offset_s in (2 * HOUR_S, -2 * HOUR_S, HOUR_S, -HOUR_S, 30 * 24 * HOUR_S, 0):
            clock.set(offset_s)
            known = len(marks(deployment))
            deployment.wait_until(
                lambda known=known: len(marks(deployment)) > known + 20, f"it counts on, its clock off by {offset_s} s"
            )
            time.sleep(chance.uniform(0, 2))
        assert_no_watermark_ahead(deployment)
    deployment.finish()
    assert deployment.events("counter")[-1]["event"] == "stopped"


# --- The future


@pytest.mark.timeout(200)
def test_a_flood_from_the_future_is_refused_and_moves_no_watermark(
    brisk: Deployment, chance: random.Random, seed: int
) -> None:
    """20,000 events of tomorrow among the load; then some within the skew, which may move the watermark so far only."""
    brisk.start("counter")
    brisk.start("aggregator")
    with feeding(brisk, 700, seed):
        brisk.wait_until(lambda: last_final_ms(brisk) > 0, "windows become final")
        send(brisk, (future_view(brisk, number, SKEW_MS + chance.randrange(1_000, DAY_MS)) for number in range(20_000)))
        flooded_ms = now_ms()
        brisk.wait_until(lambda: last_final_ms(brisk) > flooded_ms, "windows of the present become final")
        # what the generator sends is at most a few ms ahead of the clock
        assert max(mark.watermark_ms for mark in marks(brisk)) <= now_ms() + 1_000
        send(brisk, (future_view(brisk, number, SKEW_MS - 10_000) for number in range(20_000, 20_400)))
        brisk.wait_until(
            lambda: max(mark.watermark_ms for mark in marks(brisk)) > flooded_ms + SKEW_MS - 10_000, "they are accepted"
        )
        assert_no_watermark_ahead(brisk)
        time.sleep(2)
    report = brisk.finish()
    assert report.rejected["in_the_future"] >= 20_000


def future_view(deployment: Deployment, number: int, ahead_ms: int) -> Sent:
    """A view that says it happens later than its record was sent."""
    sent_ms = now_ms()
    user = f"f{number}".encode()
    view = {
        "event_id": f"future-{number}",
        "event_type": "view",
        "event_time": sent_ms + ahead_ms,
        "advertiser_id": "a1",
        "user_id": user.decode(),
        "platform": "meta",
        "campaign_id": "c1",
    }
    return Sent(deployment.settings.events_topics[0], -1, user, orjson.dumps(view), sent_ms)


# --- The past


class Memory:
    """The largest memory (MB) of the workers and of Redis, looked at all the time."""

    def __init__(self, deployment: Deployment, redis_url: str) -> None:
        self.redis_url = redis_url
        self.workers = dict(zip(("counter", "aggregator"), deployment.running, strict=False))
        self.most: dict[str, float] = {}
        self.stop = threading.Event()

    def look(self) -> None:
        while not self.stop.wait(0.2):
            found = {role: rss_mb(worker.pid) for role, worker in self.workers.items()}
            found["redis"] = redis_mb(self.redis_url)
            for name, mb in found.items():
                self.most[name] = max(self.most.get(name, 0.0), mb)


def redis_mb(url: str) -> float:
    """The memory that Redis has in use now."""
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        return client.info("memory")["used_memory"] / 2**20


@contextmanager
def watching(deployment: Deployment, redis_url: str) -> Iterator[Memory]:
    memory = Memory(deployment, redis_url)
    thread = threading.Thread(target=memory.look)
    thread.start()
    try:
        yield memory
    finally:
        memory.stop.set()
        thread.join()


@pytest.mark.timeout(400)
def test_months_at_full_speed_are_exact_final_and_bounded_in_memory(
    deployment: Deployment, services: Services, seed: int
) -> None:
    """Twice 60,000 events of 30 days, each record stamped with its time, as an import sends them; then the present.

    The second month costs the workers no more memory than the first, and Redis not more than that once again: there,
    conversions and counts are kept for longer than both.
    """
    deployment.start("counter")
    deployment.start("aggregator")
    policy = load_policy(deployment.settings.policy)[0]
    empty_mb = redis_mb(services.redis_url)
    most = []
    for number in range(2):
        begun_ms = now_ms() - 61 * DAY_MS + number * 30 * DAY_MS
        month = located(deployment, events(seed + number, MONTH_EVENTS, begun_ms, policy, None, MONTH_EVENTS_PER_S))
        with watching(deployment, services.redis_url) as memory:
            assert send(deployment, month) == MONTH_EVENTS
            ended_ms = begun_ms + 30 * DAY_MS
            deployment.wait_until(
                lambda ended_ms=ended_ms: last_final_ms(deployment) > ended_ms - 3 * HOUR_S * 1000, "it is final", 120
            )
        most.append(memory.most)
    with deployment.load(seed=seed + 2):
        time.sleep(5)
    deployment.finish()
    latest = dict(count_upserts(deployment))
    assert sum(row.window_start < ended_ms for row in latest.values()) > 80_000
    still_open = [row for row in latest.values() if not row.final and row.window_start < ended_ms]
    assert not still_open, f"{len(still_open)} rows of those months are not final, such as {still_open[:2]}"
    first, second = most
    for role in ("counter", "aggregator"):
        assert second[role] < first[role] * GROWTH_MAX + 20, most
    assert second["redis"] - first["redis"] < (first["redis"] - empty_mb) * GROWTH_MAX, most
