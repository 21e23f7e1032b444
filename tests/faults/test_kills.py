"""Workers that end at once: kill -9 at every step of the engine and at random times, and SIGTERM in mid batch."""

import random
import signal
import subprocess
import time

import pytest

from app.engine.failpoint import STEPS
from tests.integration.deployment import Deployment

PARTITIONS = 4
Workers = dict[tuple[str, int], "subprocess.Popen[bytes]"]  # by role and slot
LIVE_STEPS = [step for step in STEPS if step != "rebuilt"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("role", "other"),
    [
        pytest.param("counter", "aggregator", marks=[pytest.mark.smoke, pytest.mark.slow]),
        ("aggregator", "counter"),
    ],
)
def test_a_worker_killed_at_every_step_counts_exactly(
    deployment: Deployment, chance: random.Random, seed: int, role: str, other: str
) -> None:
    deployment.start(other)
    with deployment.load(seed=seed):
        kill_at_each_step(deployment, role, chance)
        deployment.start(role)
    deployment.finish()


def kill_at_each_step(deployment: Deployment, role: str, chance: random.Random) -> None:
    """Starts a worker for each step of a batch, and sees it die there, at a passing left to chance."""
    for step in LIVE_STEPS:
        passing = 1 if step == "reopened" else chance.randint(1, 4)
        worker = deployment.start(role, failpoint=f"{step}:{passing}")
        assert deployment.wait_for_death(worker) == -signal.SIGKILL, f"did not die at {step}\n{deployment.logs()}"


def kill_at_random_times(deployment: Deployment, workers: Workers, longest_s: float, chance: random.Random) -> None:
    """Kills twelve workers one after the other, and starts each again; between two kills pass up to `longest_s` seconds."""
    for _ in range(12):
        time.sleep(chance.uniform(0.3, longest_s))
        name = chance.choice(list(workers))
        workers[name].kill()
        workers[name].wait()
        time.sleep(chance.choice([0, 0, 2]))
        workers[name] = deployment.start(*name)


@pytest.mark.timeout(400)
def test_several_workers_killed_at_random_times_count_exactly(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    workers = {
        ("counter", 0): deployment.start("counter", 0),
        ("counter", 1): deployment.start("counter", 1),
        ("aggregator", 0): deployment.start("aggregator", 0),
        ("aggregator", 1): deployment.start("aggregator", 1),
    }
    with deployment.load(rate=1000, seed=seed):
        kill_at_random_times(deployment, workers, 6, chance)
    deployment.finish()


@pytest.mark.timeout(200)
def test_a_worker_killed_at_every_step_of_a_rebuild_begins_it_again(deployment: Deployment, seed: int) -> None:
    counter = deployment.start("counter")
    deployment.start("aggregator")
    assert deployment.generate("--count", "20000", "--seed", str(seed)).wait(60) == 0
    deployment.assert_exact()
    assert deployment.stop(counter) == 0
    deployment.empty_redis()
    for step in ("reopened", "batch_read", "state_written", "rebuilt"):
        worker = deployment.start("counter", failpoint=step)
        assert deployment.wait_for_death(worker) == -signal.SIGKILL, f"did not die at {step}\n{deployment.logs()}"
    deployment.start("counter")
    assert deployment.generate("--count", "5000", "--seed", str(seed + 1)).wait(60) == 0
    deployment.finish()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_told_to_stop_in_mid_batch_ends_cleanly_and_the_next_owner_need_not_wait(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    """Exit 0 within the grace period. The next owner takes over by the leave, long before the session times out."""
    deployment.start("aggregator")
    with deployment.load(rate=1500, seed=seed):
        for turn in range(4):
            counter = deployment.start("counter", slot=turn)
            deployment.wait_until(lambda turn=turn: deployment.owned("counter", turn), "the counter owns partitions")
            time.sleep(chance.uniform(0, 0.5))
            begun = time.monotonic()
            assert deployment.stop(counter) == 0, deployment.logs()
            assert time.monotonic() - begun < 5, "a stop waits for one batch, not for more"
        begun = time.monotonic()
        deployment.start("counter", slot=9)
        deployment.wait_until(lambda: len(deployment.owned("counter", 9)) == PARTITIONS, "the next owner owns all")
        assert time.monotonic() - begun < deployment.settings.session_timeout_ms / 1000
    deployment.finish()
