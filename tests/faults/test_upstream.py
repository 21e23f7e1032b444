"""What producers do wrong: they send again, to the wrong place, everything at once, nothing at all, or late."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.generate import Mix, events
from app.policy.load import load_policy
from tests.conftest import Services
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
    published_counts,
    raw_records,
    send,
)
from tests.integration.deployment import Deployment, deployed

HOUR_MS = 3_600_000
MINUTE_MS = 60_000


@pytest.fixture
def two_topics(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment that reads two raw topics."""
    topics = f"{topic_prefix}.pixel,{topic_prefix}.server"
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, events_topics=topics) as running:
        yield running


@pytest.fixture
def brisk(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose windows become final within seconds; a worker that is paused for a while stays a member."""
    with deployed(
        services.bootstrap,
        services.redis_url,
        topic_prefix,
        tmp_path,
        policy=str(brisk_policy(tmp_path)),
        session_timeout_ms=60_000,
    ) as running:
        yield running


def history(deployment: Deployment, seed: int, count: int, ago_ms: int, mix: Mix | None = None) -> list[Sent]:
    """Half an hour of events that began so long ago, each record stamped then."""
    policy = load_policy(deployment.settings.policy)[0]
    return list(located(deployment, events(seed, count, now_ms() - ago_ms, policy, mix, count / 1_800)))


@pytest.mark.timeout(200)
def test_retries_at_once_and_hours_later_change_no_count(deployment: Deployment, seed: int) -> None:
    """Every tenth record is sent twice in a row; 40 hours of stream time later all come again, byte for byte."""
    counter = deployment.start("counter")
    deployment.start("aggregator")
    first = history(deployment, seed, 4_000, 41 * HOUR_MS, Mix(retries=0.1))
    send(deployment, first)
    with deployment.load(seed=seed + 1):
        deployment.wait_until(lambda: len(marks(deployment)) > 20, "the load is counted")
        long_ago_ms = now_ms() - 30 * HOUR_MS
        before = published_counts(deployment, long_ago_ms)
        assert sum(row["clicks"] for row in before.values()) > 300
        send(deployment, first)
        assert deployment.stop(counter) == 0  # some of them are counted by one worker, the rest by the next
        deployment.start("counter")
        time.sleep(3)
    report = deployment.finish()
    assert report.duplicates > 0.8 * len(first)
    assert published_counts(deployment, long_ago_ms) == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stamps", ["of then", "of now"])
def test_everything_from_an_hour_ago_sent_once_more_changes_no_count(
    deployment: Deployment, seed: int, stamps: str
) -> None:
    deployment.start("counter", 0)
    deployment.start("counter", 1)
    deployment.start("aggregator")
    send(deployment, history(deployment, seed, 20_000, 65 * MINUTE_MS))
    deployment.assert_exact()
    first = raw_records(deployment)
    # what is under way at the end of that half hour comes up to half an hour later, under the same event ids
    hour_ago_ms = now_ms() - 33 * MINUTE_MS
    before = published_counts(deployment, hour_ago_ms)
    assert sum(row["conversions"] for row in before.values()) > 100
    with deployment.load(seed=seed + 1, rate=500):
        time.sleep(2)
        again = first if stamps == "of then" else [record._replace(timestamp_ms=now_ms()) for record in first]
        assert send(deployment, again) >= 20_000
        time.sleep(5)
    report = deployment.finish()
    assert report.duplicates > 0.9 * len(first)
    assert published_counts(deployment, hour_ago_ms) == before


@pytest.mark.timeout(200)
def test_an_event_on_two_topics_and_on_foreign_partitions_counts_once(
    two_topics: Deployment, chance: random.Random, seed: int
) -> None:
    deployment = two_topics
    pixel, server = deployment.settings.events_topics
    deployment.start("counter", 0)
    deployment.start("counter", 1)
    deployment.start("aggregator")
    with deployment.load(seed=seed):
        deployment.wait_until(lambda: len(raw_records(deployment)) > 4_000, "the load fills both topics")
        some = [record for record in raw_records(deployment) if record.topic == pixel]
        copies = [
            *(record._replace(topic=server) for record in some),
            *(_on_another_partition(record, chance) for record in some),
            *(_on_another_partition(record._replace(topic=server), chance) for record in some),
        ]
        chance.shuffle(copies)
        send(deployment, copies)
        time.sleep(2)
    report = deployment.finish()
    assert report.duplicates > 2.7 * len(some)
    assert rekeyed_count(deployment) > 1.8 * len(some)


@pytest.mark.timeout(200)
def test_a_partition_that_is_silent_holds_no_window_open_and_counts_when_it_speaks_again(
    brisk: Deployment, chance: random.Random, seed: int
) -> None:
    brisk.start("counter", 0)
    brisk.start("counter", 1)
    brisk.start("aggregator")
    silent = chance.randrange(brisk.settings.partitions)
    with feeding(brisk, 700, seed) as feed:
        brisk.wait_until(lambda: last_final_ms(brisk) > 0, "windows become final while all speak")
        feed.hold(silent)
        since_ms = now_ms()
        # no event of the silent partition is younger than this, so only the idle clock can have moved its watermark
        brisk.wait_until(lambda: last_final_ms(brisk) > since_ms + 6_000, "windows become final without it")
        stream_ms = max(mark.watermark_ms for mark in marks(brisk) if mark.partition == silent and mark.ranges)
        assert stream_ms < since_ms + 6_000, "it was not silent"
        unchanged = corrected_after_final(brisk)
        assert feed.release(silent) > 500
        brisk.wait_until(lambda: corrected_after_final(brisk) > unchanged + 50, "what it had kept corrects the windows")
    brisk.finish()


@pytest.mark.timeout(300)
def test_a_partition_tens_of_thousands_behind_delays_no_other_and_lets_no_window_end_too_early(
    brisk: Deployment, seed: int
) -> None:
    """One of two counters stands still while a burst comes onto one of its partitions; the other counts on."""
    brisk.start("aggregator")
    brisk.start("counter", 0)
    slow = brisk.start("counter", 1)
    brisk.wait_until(
        lambda: [len(brisk.owned("counter", slot)) for slot in (0, 1)] == [2, 2], "the counters share the partitions"
    )
    behind = brisk.owned("counter", 1)[0]
    others = brisk.owned("counter", 0)
    policy = load_policy(brisk.settings.policy)[0]
    burst = located(brisk, events(seed + 1, 160_000, now_ms() - 20 * MINUTE_MS, policy, None, 200))
    burst = [record for record in burst if record.partition == behind]
    with feeding(brisk, 700, seed):
        brisk.wait_until(lambda: last_final_ms(brisk) > 0, "windows become final")
        slow.send_signal(signal.SIGSTOP)
        assert send(brisk, burst) > 30_000
        stopped_ms = now_ms()
        time.sleep(12)
        told = marks(brisk)
        assert max(mark.watermark_ms for mark in told if mark.partition in others) > stopped_ms + 8_000
        reached_ms = max(mark.watermark_ms for mark in told if mark.partition == behind)
        assert reached_ms < stopped_ms, "it was not behind"
        assert last_final_ms(brisk) < reached_ms, "windows ended that the partition behind had not passed"
        counted_ms = max(row.window_start for _, row in count_upserts(brisk))
        assert counted_ms > stopped_ms + 8_000, "the others' counts do not wait"
        slow.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        brisk.wait_until(lambda: last_final_ms(brisk) > stopped_ms, "the partition catches up", 60)
        assert time.monotonic() - resumed < 45
    brisk.finish()


def rekeyed_count(deployment: Deployment) -> int:
    """How many events were sent on to their owners."""
    settings = deployment.settings
    clients = KafkaClients(settings)
    partitions = range(settings.partitions)
    return sum(
        1
        for _ in itertools.chain.from_iterable(
            read_partition(clients, settings.rekeyed_topic, partition, 0, None) for partition in partitions
        )
    )


def _on_another_partition(record: Sent, chance: random.Random) -> Sent:
    return record._replace(partition=(record.partition + chance.randrange(1, 4)) % 4)
