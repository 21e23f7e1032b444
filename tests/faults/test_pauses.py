"""Workers that stand still (SIGSTOP) for longer than their session and wake when another one owns their partitions.

That such a zombie wrote nothing shows in three ways. The ledgers never move back and no epoch rises until it has given
up. The new owner goes on in the session in which it took over: before each batch it compares the ledger with what it left
there itself, and a foreign write would end its session. And a transaction in which the zombie was stopped is aborted.
"""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed

PARTITIONS = 4
OTHER = {"counter": "aggregator", "aggregator": "counter"}
ZOMBIE, OWNER = 0, 1  # their slots
# The step at which a worker is stopped, on which passing, and why it gives up when it wakes; None: it had nothing in
# hand, and comes back in its old session.
PAUSES = [
    ("reopened", 1, None),
    ("batch_read", 3, "taken over by another worker"),
    ("folded", 3, "Kafka: "),
    ("transaction_begun", 4, "Kafka: "),
    ("produced", 3, "Kafka: "),
    ("offsets_sent", 3, "Kafka: "),
    ("committed", 4, "another worker took a partition over"),
    ("state_written", 3, None),
]


class Position(NamedTuple):
    """A partition's ledger."""

    epoch: int
    next: dict[str, int]


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_counter_paused_in_mid_transaction_or_before_its_redis_write_writes_nothing_when_it_wakes(
    deployment: Deployment, seed: int
) -> None:
    pauses = [pause for pause in PAUSES if pause[0] in ("offsets_sent", "committed")]
    pause_at_each(deployment, "counter", pauses, seed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["counter", "aggregator"])
def test_a_worker_paused_at_every_step_writes_nothing_when_it_wakes(
    deployment: Deployment, seed: int, role: str
) -> None:
    pause_at_each(deployment, role, PAUSES, seed)


@pytest.mark.timeout(600)
def test_static_members_paused_at_every_step_write_nothing_when_they_wake(
    services: Services, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path, static_membership=True) as deployment:
        pause_at_each(deployment, "counter", PAUSES, seed)


@pytest.mark.timeout(600)
def test_workers_paused_at_random_moments_for_longer_and_shorter_than_their_session_count_exactly(
    deployment: Deployment, chance: random.Random, seed: int
) -> None:
    session_s = deployment.settings.session_timeout_ms / 1000
    workers = {(role, slot): deployment.start(role, slot) for role in OTHER for slot in (0, 1)}
    with deployment.load(rate=1000, seed=seed):
        for pause_s in (session_s + 3, 1, session_s + 1, session_s - 1, session_s, session_s + 6):
            deployment.wait_until(lambda: all(deployment.owned(*name) for name in workers), "all own partitions", 60)
            time.sleep(chance.uniform(0, 2))
            name = chance.choice(list(workers))
            with stopped(workers[name], pause_s):
                pass
    deployment.wait_until(lambda: all(deployment.owned(*name) for name in workers), "all own partitions", 60)
    deployment.finish()


@pytest.mark.timeout(300)
def test_all_workers_paused_together_begin_anew_and_count_exactly(deployment: Deployment, seed: int) -> None:
    """As a host that sleeps: no other worker is there to take over, and the group is empty when they wake."""
    workers = [deployment.start(role, slot) for role in OTHER for slot in (0, 1)]
    with deployment.load(rate=1000, seed=seed):
        for _ in range(2):
            wait_until_all_is_owned(deployment)
            time.sleep(2)
            for worker in workers:
                worker.send_signal(signal.SIGSTOP)
            time.sleep(deployment.settings.session_timeout_ms / 1000 + 3)
            before = {role: ledgers(deployment, role) for role in OTHER}
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
            for role in OTHER:
                deployment.wait_until(
                    lambda role=role, before=before: all(
                        ledgers(deployment, role)[partition].epoch > before[role][partition].epoch
                        for partition in range(PARTITIONS)
                    ),
                    f"each {role} partition is opened anew",
                )
    deployment.finish()


@pytest.mark.timeout(120)
def test_an_owner_whose_transaction_timed_out_during_a_pause_counts_its_batch_again(
    services: Services, topic_prefix: str, tmp_path: Path, seed: int
) -> None:
    """The pause is longer than the transaction may last, shorter than the session: the broker aborts, nobody takes over."""
    with deployed(
        *(services.bootstrap, services.redis_url, topic_prefix, tmp_path),
        session_timeout_ms=20_000,
        transaction_timeout_ms=2_000,
    ) as deployment:
        deployment.start("aggregator")
        with deployment.load(seed=seed):
            counter = deployment.start("counter", failpoint="offsets_sent:3:stop")
            deployment.wait_until(lambda: is_stopped(counter), "the counter is stopped")
            time.sleep(2 + 5 + 2)  # its timeout, how often the broker looks, and a broker that is busy
            counter.send_signal(signal.SIGCONT)
            deployment.wait_until(lambda: ends(deployment, "counter", ZOMBIE), "the counter gives up")
            # fenced, or what was not acknowledged before the pause is too old to be sent after it
            assert ends(deployment, "counter", ZOMBIE)[0].startswith("Kafka: ")
            deployment.wait_until(lambda: deployment.owned("counter") == list(range(PARTITIONS)), "it begins anew", 60)
        deployment.finish()


def pause_at_each(deployment: Deployment, role: str, pauses: list[tuple[str, int, str | None]], seed: int) -> None:
    """Stops a worker at each step until another one owns all its partitions and has gone on, then wakes it."""
    deployment.start(OTHER[role])
    deployment.start(role, OWNER)
    with deployment.load(rate=1000, seed=seed):
        for step, passing, why in pauses:
            pause_at(deployment, role, step, passing, why)
    deployment.finish()
    if any(step == "offsets_sent" for step, _, _ in pauses):
        topic = {"counter": deployment.settings.deltas_topic, "aggregator": deployment.settings.counts_topic}[role]
        assert aborted_records(deployment, topic) > 0, "nothing of the zombies' transactions was in the log"


def pause_at(deployment: Deployment, role: str, step: str, passing: int, why: str | None) -> None:
    """Stops a second worker at a step until the first one owns all its partitions and has gone on, then wakes it."""
    deployment.wait_until(lambda: owns_all(deployment, role, OWNER), f"the other {role} owns all")
    zombie = deployment.start(role, ZOMBIE, failpoint=f"{step}:{passing}:stop")
    deployment.wait_until(lambda: is_stopped(zombie), f"{role} is stopped at {step}")
    if step != "reopened":
        assert deployment.owned(role, ZOMBIE), f"stopped at {step} before it owned anything"
    deployment.wait_until(lambda: owns_all(deployment, role, OWNER), f"{role}, {step}: taken over")
    wait_for_progress(deployment, role)
    wake(deployment, role, zombie, why)
    deployment.wait_until(lambda: deployment.owned(role, ZOMBIE), f"{role}, {step}: the zombie is back", 60)
    assert deployment.stop(zombie) == 0, deployment.logs()


def wake(deployment: Deployment, role: str, zombie: "subprocess.Popen[bytes]", why: str | None) -> None:
    """Continues a zombie, and looks at every ledger and at the owner's session until the zombie has given up."""
    before, broken = ledgers(deployment, role), len(ends(deployment, role, OWNER))
    said, given_up = len(deployment.events(role, ZOMBIE)), len(ends(deployment, role, ZOMBIE))
    zombie.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 40
    while len(deployment.events(role, ZOMBIE)) == said:
        assert time.monotonic() < deadline, f"the zombie did nothing\n{deployment.logs()}"
        after = ledgers(deployment, role)
        for partition, position in after.items():
            for topic, offset in position.next.items():
                assert offset >= before[partition].next[topic], f"{partition} {topic}: the zombie set the ledger back"
            # with nothing in hand it may come back before it says a word
            assert why is None or position.epoch == before[partition].epoch, "the epoch rose before the zombie gave up"
        before = after
        time.sleep(0.002)
    reasons = ends(deployment, role, ZOMBIE)[given_up:]
    if why is not None:
        assert reasons, f"the zombie went on\n{deployment.logs()}"
        assert why in reasons[0]
        assert len(ends(deployment, role, OWNER)) == broken, f"the owner was disturbed\n{deployment.logs()}"


@contextmanager
def stopped(worker: "subprocess.Popen[bytes]", pause_s: float) -> Iterator[None]:
    """A pause of `pause_s` seconds, during which the block runs."""
    begun = time.monotonic()
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
        time.sleep(max(0.0, pause_s - (time.monotonic() - begun)))
    finally:
        worker.send_signal(signal.SIGCONT)


def is_stopped(worker: "subprocess.Popen[bytes]") -> bool:
    """Whether the process stands still by a signal; an error if it has ended instead."""
    assert worker.poll() is None, f"ended with {worker.returncode} instead of stopping"
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def owns_all(deployment: Deployment, role: str, slot: int) -> bool:
    return deployment.owned(role, slot) == list(range(PARTITIONS))


def wait_until_all_is_owned(deployment: Deployment) -> None:
    """Until two workers a role own all partitions between them, each some: while one still joins, the group forgives the
    other one its silence.
    """

    def is_shared(role: str) -> bool:
        first, second = (deployment.owned(role, slot) for slot in (0, 1))
        return bool(first and second) and sorted(first + second) == list(range(PARTITIONS))

    for role in OTHER:
        deployment.wait_until(lambda role=role: is_shared(role), f"the {role}s own all partitions", 60)


def ends(deployment: Deployment, role: str, slot: int) -> list[str]:
    """Why the sessions of a worker ended, in all its lives."""
    events = deployment.events(role, slot)
    return [event["why"] for event in events if event["event"] == "session ended, beginning anew"]


def ledgers(deployment: Deployment, role: str) -> dict[int, Position]:
    """What Redis says of each partition of a stage."""
    tag = deployment.settings.tag(role[0])
    with redis.Redis.from_url(deployment.settings.redis_url.get_secret_value(), socket_timeout=10) as client:
        pipeline = client.pipeline(transaction=False)
        for partition in range(PARTITIONS):
            pipeline.hgetall(f"{{{tag}{partition}}}:ledger")
        found: list[dict[bytes, Any]] = pipeline.execute()
    return {
        partition: Position(
            int(fields[b"epoch"]),
            {name.decode(): int(value) for name, value in fields.items() if name.startswith(b"next:")},
        )
        for partition, fields in enumerate(found)
    }


def wait_for_progress(deployment: Deployment, role: str) -> None:
    """Until every partition's ledger has moved on, by whoever owns it."""
    before = ledgers(deployment, role)

    def moved() -> bool:
        return all(ledgers(deployment, role)[partition].next != position.next for partition, position in before.items())

    deployment.wait_until(moved, f"the {role}'s state moves on")


def aborted_records(deployment: Deployment, topic: str) -> int:
    """How many records of a topic lie in aborted transactions; no transaction may be open."""
    every = count_records(deployment, topic, "read_uncommitted")
    return every - count_records(deployment, topic, "read_committed")


def count_records(deployment: Deployment, topic: str, isolation: str) -> int:
    consumer = Consumer(
        {
            "bootstrap.servers": deployment.settings.bootstrap,
            "group.id": "look",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    try:
        parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition) for partition in parts])
        count, at_end = 0, set()
        while len(at_end) < len(parts):
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                assert error is None or error.code() == KafkaError._PARTITION_EOF, error
                count += error is None
                if error is not None:
                    at_end.add(message.partition())
        return count
    finally:
        consumer.close()
