"""Conversions that name only a click, under faults: each finds its user exactly once, whoever is killed, paused or robbed of state."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import orjson
import pytest
import redis

from app.contract import rows
from app.contract.reasons import CLICK_NOT_FOUND
from app.engine.clients import KafkaClients
from app.engine.rebuild import read_back, read_partition
from app.generate import Mix
from app.local import local_redis
from app.verify.report import Report
from tests.conftest import Services
from tests.faults.feed import Feed, feeding
from tests.faults.redis_state import Counting, rebuilt
from tests.faults.test_kills import kill_at_each_step, kill_at_random_times
from tests.faults.test_pauses import OWNER, PAUSES, pause_at
from tests.integration.deployment import POLICY, Deployment, deployed
from tests.integration.letters import click, conversion, send
from tests.upserts import latest

PARTITIONS = 4
ROLES = ("counter", "aggregator", "matcher")
MIX = Mix(conversions=0.08, by_click=0.7, late_clicks=0.2)

Loaded = Callable[..., AbstractContextManager[Feed]]


def policy_with(folder: Path, click_ids: str) -> Path:
    """The policy with click_ids."""
    path = folder / "clicks.yaml"
    path.write_text(f"click_ids: {click_ids}\n{POLICY.read_text()}")
    return path


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    policy = policy_with(tmp_path, "{park_for: 6d, known_for: 40d}")
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, policy=str(policy)) as running:
        yield running


def finish(deployment: Deployment) -> Report:
    """As every case ends; and that it was about something."""
    report = deployment.finish()
    assert report.matched > 20, "too few found their user for this to say anything"
    return report


@pytest.mark.smoke
@pytest.mark.timeout(120)
def test_conversions_of_a_call_centre_are_counted_once_through_a_kill_and_a_lost_state(deployment: Deployment) -> None:
    """End to end, as an operator sees it: what is parked, what a kill in mid transaction does, what `verify` and the letters say."""
    for role in ("counter", "aggregator"):
        deployment.start(role)
    numbers = range(40)
    clicks = [click(f"k{n}", user_id=f"u{n}", click_id=f"gclid-{n}") for n in numbers]
    leads = [conversion(f"c{n}", click_id=f"gclid-{n}", order_id=f"o{n}") for n in numbers]
    for lead in leads:
        del lead["user_id"]
    records = [*leads[:20], *clicks, *leads[10:]]  # half of the clicks come after their conversion; some are sent twice
    send(deployment, ((None, orjson.dumps(event)) for event in records))
    matcher = deployment.start("matcher", failpoint="offsets_sent")
    assert deployment.wait_for_death(matcher) == -signal.SIGKILL, deployment.logs()
    matcher = deployment.start("matcher")
    report = deployment.assert_exact()
    assert (report.matched, report.duplicates, report.waiting) == (50, 10, 0)
    assert report.attributed_rows == {"counted": 40}
    assert deployment.stop(matcher) == 0

    deployment.empty_redis()
    too_old = conversion("old", click_id="never", event_time=clicks[0]["event_time"] - 6.5 * 86_400_000)  # type: ignore[operator]
    waits = conversion("waits", click_id="not yet")
    retracted = conversion("a1", event_type="adjustment", adjustment="retract", order_id="o7", click_id="gclid-7")
    for event in (too_old, waits, retracted):
        del event["user_id"]
    too_old["event_time"] = int(too_old["event_time"])
    send(deployment, ((b"any key", orjson.dumps(event)) for event in (too_old, waits, retracted)))
    deployment.start("matcher", 1)
    report = deployment.assert_exact()
    assert (report.matched, report.waiting) == (51, 1)
    assert report.attributed_rows == {"counted": 39, "retracted": 1}
    assert report.rejected == {CLICK_NOT_FOUND: 1}
    assert rebuilt_by(deployment, "matcher", 1)
    listed = deployment.onecount("dlq", "list", "--reason", CLICK_NOT_FOUND, "--json")
    assert listed.returncode == 0, listed.stderr
    assert [orjson.loads(line)["reason"] for line in listed.stdout.splitlines()] == [CLICK_NOT_FOUND]
    deployment.finish()


def rebuilt_by(deployment: Deployment, role: str, slot: int) -> list[int]:
    """The partitions that a worker said it rebuilt."""
    return [
        partition
        for event in deployment.events(role, slot)
        if event["event"] == "rebuilt"
        for partition in event["partitions"]
    ]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("role", ["matcher", "counter"])
def test_a_worker_killed_at_every_step_matches_exactly_once(
    deployment: Deployment, chance: random.Random, seed: int, role: str
) -> None:
    for other in ROLES:
        if other != role:
            deployment.start(other)
    with feeding(deployment, 700, seed, MIX):
        kill_at_each_step(deployment, role, chance)
        deployment.start(role)
    finish(deployment)


@pytest.mark.timeout(600)
def test_a_matcher_paused_at_every_step_writes_nothing_when_it_wakes(deployment: Deployment, seed: int) -> None:
    for role in ROLES:
        deployment.start(role, OWNER)
    with feeding(deployment, 1000, seed, MIX):
        for step, passing, why in PAUSES:
            pause_at(deployment, "matcher", step, passing, why)
    finish(deployment)


@pytest.mark.timeout(400)
def test_all_stages_killed_and_moved_at_random_times_match_exactly_once(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    workers = {(role, slot): deployment.start(role, slot) for role in ROLES for slot in (0, 1)}
    with feeding(deployment, 1000, seed, MIX):
        kill_at_random_times(deployment, workers, 5, chance)
    finish(deployment)


@pytest.mark.timeout(300)
def test_a_redis_that_is_emptied_and_falls_back_is_made_good(
    counting: Counting, chance: random.Random, seed: int, tmp_path: Path
) -> None:
    """FLUSHALL in flight, and a kill -9 of a Redis that writes to disk once a second."""
    policy = policy_with(tmp_path, "{park_for: 6d, known_for: 40d}")
    with local_redis(tmp_path / "redis") as server, counting(server.url, policy=str(policy)) as deployment:
        deployment.start("matcher")
        with feeding(deployment, 700, seed, MIX), redis.Redis.from_url(server.url, socket_timeout=10) as client:
            for turn in range(4):
                time.sleep(chance.uniform(3, 6))
                if turn % 2:
                    server.kill()
                    server.start()
                else:
                    client.flushall()
            time.sleep(3)
        finish(deployment)
        assert rebuilt(deployment, "matcher") == set(range(PARTITIONS))


@pytest.mark.timeout(300)
def test_a_matcher_that_stood_still_for_long_matches_what_has_gathered_in_their_windows(
    deployment: Deployment, seed: int
) -> None:
    """Meanwhile the users' partitions have gone on; each conversion counts in the window of its own time."""
    for role in ("counter", "aggregator"):
        deployment.start(role)
    assert deployment.generate("--count", "60000", "--seed", str(seed)).wait(90) == 0
    deployment.start("matcher")
    report = deployment.finish(180)
    assert report.matched > 100
    late = [row for row in attributed(deployment) if row.touch_type == "click"]
    assert late
    assert all(row.touch_time < row.event_time for row in late if row.touch_time is not None)


def attributed(deployment: Deployment) -> list[rows.AttributedRow]:
    """The published conversions."""
    clients, settings = KafkaClients(deployment.settings), deployment.settings
    return [
        rows.decode_attributed(value)
        for partition in range(settings.partitions)
        for value in latest(read_back(clients, settings.attributed_topic, partition, 0)).values()
    ]


@pytest.mark.timeout(300)
def test_what_found_no_click_is_refused_once_and_found_by_a_retry(
    services: Services, topic_prefix: str, tmp_path: Path
) -> None:
    """The operator's way back: the click's producer is mended, its clicks come, and the letters are sent again."""
    policy = policy_with(tmp_path, "{park_for: 1s, known_for: 40d}")
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, policy=str(policy)) as deployment:
        for role in ROLES:
            deployment.start(role)
        lead = conversion("c1", click_id="gclid-1")
        del lead["user_id"]
        send(deployment, [(None, orjson.dumps(lead))])
        deployment.assert_exact()
        moved = [click(f"m{n}", click_id=f"other-{n}", event_time=lead["event_time"] + 2_000) for n in range(64)]  # type: ignore[operator]
        send(deployment, ((b"u1", orjson.dumps(event)) for event in moved))  # on every partition of the clicks
        report = deployment.assert_exact()
        assert report.rejected == {CLICK_NOT_FOUND: 1}
        send(deployment, [(b"u1", orjson.dumps(click("k1", click_id="gclid-1")))])
        deployment.assert_exact()
        sent = deployment.onecount("dlq", "retry", "--reason", CLICK_NOT_FOUND, "--yes")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        report = deployment.finish()
        assert (report.matched, report.rejected) == (1, {CLICK_NOT_FOUND: 1})
        assert report.attributed_rows == {"counted": 1}
        letters = [
            rows.decode_dead_letter(message.value() or b"")
            for partition in range(PARTITIONS)
            for message in read_partition(
                KafkaClients(deployment.settings), deployment.settings.dlq_topic, partition, 0, None
            )
        ]
        assert [(letter.reason, letter.topic) for letter in letters] == [
            (CLICK_NOT_FOUND, deployment.settings.events_topics[0])
        ]
