"""Events that break the contract, many at once or huge: they cost neither the others' counts, nor speed, nor memory."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client.parser import text_string_to_metric_families

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_partition
from app.generate import Mix, events
from app.policy.load import load_policy
from tests.conftest import Services
from tests.faults.feed import LARGEST_BYTES, Sent, feeding, located, now_ms, send
from tests.faults.test_soak import rss_mb
from tests.integration.deployment import Deployment, deployed

CLEAN = Mix(invalid=0)
POISONED = Mix(invalid=0.25)  # of weights that add up to 1.215: a fifth of all
RATE = 1_000
HUGE_BYTES = 10 * 2**20
# A refused event is judged twice and leaves a letter, so a poisoned batch may cost more. Measured: see the assertion.
SPEED_MIN = 0.4
GROWTH_MB_MAX = 60


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """Workers with /metrics, and a raw topic that lets a record of 10 MB in, as a broker with a generous limit would."""
    config = {"max.message.bytes": str(LARGEST_BYTES), "retention.ms": "-1"}
    admin = AdminClient({"bootstrap.servers": services.bootstrap})
    for future in admin.create_topics([NewTopic(f"{topic_prefix}.events", 4, 1, config=config)]).values():
        future.result(10)
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, metrics_port=0) as running:
        yield running


@pytest.mark.timeout(200)
def test_huge_records_and_a_burst_of_null_ones_amid_the_load_are_refused_and_nothing_else(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    counter = deployment.start("counter")
    deployment.start("aggregator")
    topic = deployment.settings.events_topics[0]
    huge = b'{"event_id":"' + b"x" * HUGE_BYTES + b'"}'
    with deployment.load(seed=seed):
        deployment.wait_until(lambda: deployment.owned("counter"), "the counter owns partitions")
        send(deployment, (Sent(topic, chance.randrange(4), b"huge", huge, now_ms()) for _ in range(4)))
        nothing = [Sent(topic, number % 4, b"nobody", chance.choice([None, b""]), now_ms()) for number in range(20_000)]
        send(deployment, nothing)
        send(deployment, (Sent(topic, chance.randrange(4), None, huge, now_ms()) for _ in range(4)))
        time.sleep(2)
        assert rss_mb(counter.pid) < 700
    report = deployment.finish()
    letters = dead_letters(deployment)
    assert sum(letter.reason == "too_large" and letter.size_bytes > HUGE_BYTES for letter in letters) == 8
    assert report.rejected["null_record"] + report.rejected["empty"] >= 20_000
    assert Counter(letter.reason for letter in letters) == Counter(report.rejected) + Counter(
        report.refused_adjustments
    )
    assert_no_session_ended(deployment)


@pytest.mark.timeout(400)
def test_a_fifth_of_poison_for_a_minute_raises_the_alarm_and_holds_memory_and_pace(
    deployment: Deployment, seed: int
) -> None:
    counter = deployment.start("counter")
    deployment.start("aggregator")
    with feeding(deployment, RATE, seed, CLEAN):
        clean = watch(deployment, counter, 30)
    assert not alarms(deployment), "no alarm while all is well"
    with feeding(deployment, RATE, seed + 1, POISONED):
        poisoned = watch(deployment, counter, 60)
    assert [line["event"] for line in alarms(deployment)] == ["too many dead letters"]
    assert alarms(deployment)[0]["level"] == "warning"
    assert poisoned["ratio"] > 0.15
    assert poisoned["lag"] < 5 * RATE, "it keeps up with what comes"
    assert poisoned["rss_mb"] < clean["rss_mb"] + GROWTH_MB_MAX, (clean, poisoned)
    with feeding(deployment, RATE, seed + 2, CLEAN):
        deployment.wait_until(lambda: len(alarms(deployment)) == 2, "the alarm ends", 80)
    assert alarms(deployment)[1]["event"] == "few dead letters again"
    report = deployment.finish()
    assert sum(report.rejected.values()) > 0.17 * 60 * RATE
    assert len(dead_letters(deployment)) == sum(report.rejected.values()) + sum(report.refused_adjustments.values())
    assert_no_session_ended(deployment)


@pytest.mark.timeout(400)
def test_a_poisoned_backlog_is_worked_off_nearly_as_fast_as_a_clean_one(deployment: Deployment, seed: int) -> None:
    """In turns, three times each; the best of each counts, since the machine has other work too."""
    deployment.start("aggregator")
    best = dict.fromkeys((CLEAN, POISONED), 0.0)
    policy = load_policy(deployment.settings.policy)[0]
    for turn in range(6):
        mix = (CLEAN, POISONED)[turn % 2]
        count = 50_000
        generated = events(seed + turn, count, now_ms() - 3_600_000, policy, mix, count / 600)
        send(deployment, located(deployment, generated))
        counter = deployment.start("counter", turn)
        best[mix] = max(best[mix], events_per_s(deployment, turn, count))
        assert deployment.stop(counter) == 0
    deployment.start("counter", 9)
    with deployment.load(seed=seed + 10):
        time.sleep(2)
    deployment.finish()
    assert best[POISONED] > SPEED_MIN * best[CLEAN], best


def events_per_s(deployment: Deployment, slot: int, count: int) -> float:
    """How fast a counter judges a backlog, by the time that it works: the first batch may take nearly all of it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = judged(scrape(deployment, "counter", slot))
        if done >= count:
            return done / scrape(deployment, "counter", slot, without="read")["onecount_batch_seconds_sum"]
        time.sleep(0.01)
    raise AssertionError(f"the backlog is not worked off\n{deployment.logs()}")


def judged(samples: dict[str, float]) -> float:
    """The raw events that a counter has judged; the re-keyed ones are judged twice."""
    names = ("onecount_events_total", "onecount_rejected_events_total", "onecount_userless_events_total")
    return sum(samples.get(name, 0) for name in names)


def watch(deployment: Deployment, counter: "subprocess.Popen[bytes]", seconds: float) -> dict[str, float]:
    """The most memory, lag and ratio of dead letters that a counter had meanwhile."""
    most = {"rss_mb": 0.0, "lag": 0.0, "ratio": 0.0}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = scrape(deployment, "counter")
        most["rss_mb"] = max(most["rss_mb"], rss_mb(counter.pid))
        most["lag"] = max(most["lag"], found.get("onecount_lag_records", 0))
        most["ratio"] = max(most["ratio"], found.get("onecount_dead_letter_ratio", 0))
        time.sleep(0.2)
    return most


def scrape(deployment: Deployment, role: str, slot: int = 0, without: str = "") -> dict[str, float]:
    """A worker's metrics, each summed up over its labels but one step of the loop; none while it does not answer."""
    ports = [line["port"] for line in deployment.events(role, slot) if line["event"] == "metrics"]
    if not ports:
        return {}
    with urlopen(f"http://127.0.0.1:{ports[-1]}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: Counter[str] = Counter()
    for family in families:
        for sample in family.samples:
            if sample.labels.get("step") != without:
                found[sample.name] += sample.value
    return found


def alarms(deployment: Deployment) -> list[dict[str, object]]:
    """What the counter has said of the dead-letter ratio."""
    return [line for line in deployment.events("counter") if "dead letters" in line["event"]]


def dead_letters(deployment: Deployment) -> list[rows.DeadLetter]:
    """All of them; none twice."""
    settings = deployment.settings
    letters = [
        rows.decode_dead_letter(message.value())
        for partition in range(settings.partitions)
        for message in read_partition(KafkaClients(settings), settings.dlq_topic, partition, 0, None)
    ]
    places = {(letter.topic, letter.partition, letter.offset) for letter in letters}
    assert len(places) == len(letters), "refused twice"
    return letters


def assert_no_session_ended(deployment: Deployment) -> None:
    ended = [line for line in deployment.events("counter") if line["event"].startswith("session ended")]
    assert not ended, ended
