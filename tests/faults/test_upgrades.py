"""Releases that write another form of state than this one: an older one is rebuilt, a newer one is refused, none is misread.

A release is this one with other version numbers: `app.run` in a process that has set them first.
"""

import os
import subprocess
import sys

import pytest
import redis

from app.engine import aggregator, counter_partition
from app.windows import deltas
from tests.faults import topic_changes as changes
from tests.integration.deployment import Deployment

PARTITIONS = 4
VERSIONS = {"counter": counter_partition.VIEW_VERSION, "aggregator": aggregator.VIEW_VERSION}
AS_RELEASE = """
import sys
from app.engine import aggregator, counter_partition
from app.windows import deltas
from app.run import run_worker
from app.settings import from_environment
role, slot, supervisor, state, message = sys.argv[1:]
counter_partition.VIEW_VERSION = aggregator.VIEW_VERSION = int(state)
deltas.VERSION = int(message)
made = deltas.DeltaMessage
deltas.DeltaMessage = lambda *parts, **named: made(*parts, version=int(message), **named)
sys.exit(run_worker(from_environment(), role, int(slot), int(supervisor)))
"""


def start_release(
    deployment: Deployment, role: str, slot: int, state: int, message: int = deltas.VERSION
) -> subprocess.Popen[bytes]:
    """A worker of a release that writes state and deltas of these versions."""
    arguments = [role, str(slot), str(os.getpid()), str(state), str(message)]
    with (deployment.folder / f"{role}-{slot}.log").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", AS_RELEASE, *arguments],
            env=os.environ | deployment.environment,
            stdout=log,
            stderr=log,
        )
    deployment.running.append(worker)
    return worker


def older(deployment: Deployment, role: str, slot: int = 0) -> list[int]:
    """The partitions that a worker said it rebuilds since their state is older."""
    return sorted(
        partition
        for event in deployment.events(role, slot)
        if event["event"].startswith("state of an older release")
        for partition in event["partitions"]
    )


def count_with_release(deployment: Deployment, seed: int, state: int) -> None:
    """Both stages of another release count for a while and stop."""
    workers = [start_release(deployment, role, 0, state) for role in VERSIONS]
    with deployment.load(rate=1_000, seed=seed):
        changes.wait_until_counted(deployment, 4_000)
    deployment.assert_exact()
    for worker in workers:
        assert deployment.stop(worker) == 0, deployment.logs()


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_state_of_an_older_release_is_rebuilt_by_itself_and_one_line_says_so(deployment: Deployment, seed: int) -> None:
    count_with_release(deployment, seed, state=0)
    for role in VERSIONS:
        deployment.start(role)
    with deployment.load(rate=1_000, seed=seed + 1):
        for role in VERSIONS:
            deployment.wait_until(
                lambda role=role: older(deployment, role) == list(range(PARTITIONS)), f"the {role} says so"
            )
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()
    for role in VERSIONS:
        lines = [event for event in deployment.events(role) if event["event"].startswith("state of an older release")]
        assert all(event["versions"] == [0] for event in lines)
        assert len(lines) <= PARTITIONS, "one line for what was assigned together"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("role", list(VERSIONS))
def test_state_of_a_newer_release_is_refused_until_that_one_runs_again_or_a_rebuild(
    deployment: Deployment, seed: int, role: str
) -> None:
    newer = VERSIONS[role] + 1
    count_with_release(deployment, seed, state=newer)
    why = changes.start_refused(deployment, role)
    assert f"newer release (version {newer}, this one reads {VERSIONS[role]})" in why
    assert "onecount rebuild" in why
    again = [start_release(deployment, each, 1, newer) for each in VERSIONS]  # the first way: the newer release again
    with deployment.load(rate=1_000, seed=seed + 1):
        changes.wait_until_counted(deployment, 2_000)
    deployment.assert_exact()
    assert [deployment.stop(worker) for worker in again] == [0, 0]
    assert deployment.onecount("rebuild").returncode == 0  # the second way
    for each in VERSIONS:
        deployment.start(each)
    with deployment.load(rate=1_000, seed=seed + 2):
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", list(VERSIONS))
def test_a_rolling_upgrade_neither_flaps_nor_misreads(deployment: Deployment, seed: int, role: str) -> None:
    """The new release rebuilds what it takes over; the old one counts on with what it keeps, refuses what the new one
    wrote, and ends. No partition is rebuilt twice."""
    (other,) = VERSIONS.keys() - {role}
    deployment.start(other)
    old = [start_release(deployment, role, slot, state=0) for slot in range(2)]
    with deployment.load(rate=700, seed=seed):
        deployment.wait_until(
            lambda: all(deployment.owned(role, slot) for slot in range(2)), "both old workers own partitions"
        )
        changes.wait_until_counted(deployment, 2_000)
        new = deployment.start(role, 2)
        deployment.wait_until(lambda: older(deployment, role, 2), "the new worker rebuilds what it takes over")
        changes.wait_until_counted(deployment, 2_000)
        taken = set(deployment.owned(role, 2))
        assert deployment.stop(new) == 0  # its partitions go to the old workers, which refuse them
        ended = [worker for worker in old if worker.wait(changes.LOOK_S) == 3]
        assert ended, deployment.logs()
        why = [
            event["why"] for slot in range(2) for event in deployment.events(role, slot) if event["event"] == "refused"
        ]
        assert all("newer release" in line for line in why), why
        deployment.start(role, 3)
        deployment.wait_until(
            lambda: len(deployment.owned(role, 3)) == PARTITIONS, "the new worker owns all partitions"
        )
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()
    assert not taken & set(older(deployment, role, 3)), "what the new release had rebuilt was rebuilt once more"


@pytest.mark.timeout(200)
def test_state_that_is_no_state_is_refused_and_a_rebuild_mends_it(deployment: Deployment, seed: int) -> None:
    count_with_release(deployment, seed, state=VERSIONS["counter"])
    with redis.Redis.from_url(deployment.settings.redis_url.get_secret_value()) as client:
        for role in VERSIONS:
            client.hset(f"{{{deployment.settings.tag(role[0])}2}}:ledger", "view", b"\x93\xa1x\x00")
    for role in VERSIONS:
        why = changes.start_refused(deployment, role)
        assert "is unreadable" in why
        assert "onecount rebuild" in why
    assert deployment.onecount("rebuild").returncode == 0
    for role in VERSIONS:
        deployment.start(role)
    with deployment.load(rate=1_000, seed=seed + 1):
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()


@pytest.mark.timeout(200)
def test_deltas_of_a_newer_release_are_refused_until_its_aggregators_run(deployment: Deployment, seed: int) -> None:
    message = deltas.VERSION + 1
    start_release(deployment, "counter", 0, VERSIONS["counter"], message)
    deployment.start("aggregator")
    with deployment.load(rate=700, seed=seed):
        why = changes.refusal(deployment, "aggregator")
        assert f"{deployment.settings.deltas_topic}/" in why
        assert f"newer release (version {message}, this one reads {deltas.VERSION})" in why
        start_release(deployment, "aggregator", 1, VERSIONS["aggregator"], message)
        changes.wait_until_counted(deployment, 2_000)
    deployment.finish()
