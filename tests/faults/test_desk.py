"""Desks that end, stall, come back and join, and brokers that go: every row of every output topic is the oracle's afterwards."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from app.desk.session import STEPS
from app.local import local_kafka
from tests.conftest import Services
from tests.desk.deployment import Desks, desks


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Desks]:
    with desks(services.bootstrap, topic_prefix, tmp_path, redis_url=services.redis_url) as found:
        yield found


@contextmanager
def fed(deployment: Desks, seed: int) -> Iterator[None]:
    """Conversions, counts, follow-ups and nonsense, a few times a second, as long as the block lasts."""
    stop, chance, failed = Event(), random.Random(seed), []

    def feed() -> None:
        try:
            while not stop.wait(0.2):
                deployment.work(chance, now_ms(), rows=60)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def finish(deployment: Desks) -> None:
    """How every case ends: each row is exact, also once more has come, and whoever runs stops by itself."""
    deployment.assert_exact()
    deployment.work(random.Random(0), now_ms())
    deployment.assert_exact()
    for process in deployment.processes:
        if process.poll() is None:
            assert deployment.stop(process) == 0, deployment.logs()


def wait_until_stopped(process: subprocess.Popen[bytes]) -> None:
    """Until a failpoint has paused it."""
    deadline_s = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline_s, "did not stop"
        time.sleep(0.05)


@pytest.mark.timeout(400)
def test_a_desk_killed_at_every_step_publishes_exactly(deployment: Desks, chance: random.Random, seed: int) -> None:
    with fed(deployment, seed):
        for step in STEPS * 2:
            passing = 1 if step in ("fenced", "compared") else chance.randint(1, 6)
            process = deployment.start(ONECOUNT_FAILPOINT=f"{step}:{passing}")
            assert process.wait(60) == -signal.SIGKILL, f"did not die at {step}\n{deployment.logs()}"
        deployment.start()
    finish(deployment)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", STEPS)
def test_a_desk_paused_at_a_step_writes_nothing_stale_when_it_wakes_up(deployment: Desks, seed: int, step: str) -> None:
    deployment.work(random.Random(seed), now_ms())
    first = deployment.start(ONECOUNT_FAILPOINT=f"{step}:1:stop")
    wait_until_stopped(first)
    second = deployment.start()
    deployment.work(random.Random(seed + 1), now_ms())
    deployment.assert_exact()
    assert deployment.is_active(second)
    first.send_signal(signal.SIGCONT)
    deployment.wait(lambda: deployment.get(first, "/healthz")[1]["role"] == "standby", "the first one stands by")
    finish(deployment)


@pytest.mark.timeout(600)
def test_desks_killed_and_paused_at_random_times_publish_exactly(
    deployment: Desks, chance: random.Random, seed: int
) -> None:
    running = [deployment.start() for _ in range(3)]
    with fed(deployment, seed):
        for _ in range(14):
            time.sleep(chance.uniform(0.2, 6))
            number = chance.randrange(3)
            if chance.random() < 0.5:
                running[number].kill()
                running[number].wait()
                running[number] = deployment.start()
            else:
                running[number].send_signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0.1, 12))
                running[number].send_signal(signal.SIGCONT)
    finish(deployment)


@pytest.mark.timeout(200)
def test_a_desk_that_joins_takes_nothing_from_the_one_that_publishes(deployment: Desks, seed: int) -> None:
    first = deployment.start()
    deployment.assert_exact()
    deployment.wait(lambda: deployment.is_active(first), "it is active")
    with fed(deployment, seed):
        for _ in range(3):
            other = deployment.start()
            deployment.wait(
                lambda other=other: deployment.get(other, "/healthz")[1]["role"] == "standby", "it stands by"
            )
            time.sleep(2)
            assert deployment.stop(other) == 0
    assert deployment.is_active(first)
    finish(deployment)


@pytest.mark.timeout(400)
def test_brokers_that_go_while_it_publishes_leave_every_row_exact(
    topic_prefix: str, tmp_path: Path, chance: random.Random, seed: int
) -> None:
    with local_kafka() as kafka, desks(kafka.bootstrap, topic_prefix, tmp_path) as deployment:
        deployment.start()
        deployment.start()
        for end in (kafka.stop, kafka.kill, kafka.kill, kafka.stop):
            deployment.work(random.Random(chance.random()), now_ms(), rows=4_000)
            time.sleep(chance.uniform(0, 1.5))
            end()
            time.sleep(chance.uniform(0, 8))
            kafka.start()
            deployment.assert_exact(90)
        finish(deployment)


@pytest.mark.timeout(200)
def test_a_reset_waits_for_the_desk_and_leaves_what_it_was_told(deployment: Desks, seed: int) -> None:
    deployment.work(random.Random(seed), now_ms())
    process = deployment.start()
    deployment.assert_exact()
    refused = deployment.onecount("reset", "--yes")
    assert refused.returncode == 2
    assert "stop them first" in refused.stderr
    assert deployment.stop(process) == 0
    assert deployment.onecount("reset", "--yes").returncode == 0
    deployment.journeys, deployment.counts = {}, {}
    deployment.start()
    deployment.assert_exact()  # of follow-ups alone there is no lead
    deployment.work(random.Random(seed), now_ms())
    finish(deployment)


@pytest.mark.timeout(200)
def test_topics_that_are_made_anew_under_a_desk_are_read_anew(deployment: Desks, seed: int) -> None:
    deployment.work(random.Random(seed), now_ms())
    process = deployment.start()
    deployment.assert_exact()
    deployment.remake(deployment.settings.counts_topic, deployment.settings.rollups_topic)
    deployment.counts = {}
    deployment.wait(lambda: "made anew" in str(deployment.events(process)), "it is seen")
    finish(deployment)


@pytest.mark.timeout(300)
def test_another_desk_stands_by_and_takes_over_and_the_former_one_does_so_later(
    deployment: Desks, chance: random.Random, seed: int
) -> None:
    deployment.work(chance, now_ms())
    first = deployment.start()
    deployment.assert_exact()
    second = deployment.start()
    deployment.wait(lambda: deployment.get(second, "/healthz")[1]["role"] == "standby", "the second one stands by")
    assert deployment.get(second, "/leads")[1] == deployment.get(first, "/leads")[1]
    first.send_signal(signal.SIGSTOP)
    deployment.work(chance, now_ms())
    deployment.assert_exact()
    assert deployment.is_active(second)
    first.send_signal(signal.SIGCONT)
    deployment.work(chance, now_ms())
    deployment.assert_exact()
    deployment.wait(lambda: deployment.get(first, "/healthz")[1]["role"] == "standby", "the first one stands by")
    second.kill()
    deployment.work(chance, now_ms())
    finish(deployment)
