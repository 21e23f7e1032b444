"""Commits in doubt: the request or its answer is lost, the broker goes meanwhile, and a request comes late.

A worker cannot know what became of a commit that timed out. It asks the group, whose offsets were committed together with
the outputs or not at all.
"""

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from app.letters.desk import transactional_id as transactional_id_of_letters
from app.local import LocalKafka, local_kafka, local_redis
from app.local.kafka import tool_command
from app.local.processes import pick_ports
from tests.faults.proxy import Hold, Proxy, messages, proxy
from tests.faults.redis_state import wait_until_counting
from tests.integration import letters
from tests.integration.deployment import Deployment, deployed

DIRECT = "DIRECT"  # the listener that does not lead through the proxy
FENCED = {47: "INVALID_PRODUCER_EPOCH", 90: "PRODUCER_FENCED"}
ROLES = ("counter", "aggregator")
REQUEST_TIMEOUT_S = 4.0
ANSWER_S = 20.0
RESOLVED_S = 60.0


@pytest.fixture(scope="module")
def proxy_port() -> int:
    return pick_ports(1)[0]


@pytest.fixture(scope="module")
def kafka(proxy_port: int) -> Iterator[LocalKafka]:
    """A broker whose clients meet it through a proxy, and directly at another listener."""
    with local_kafka(advertise=[proxy_port], listeners={DIRECT: "PLAINTEXT"}) as running:
        yield running


@pytest.fixture
def between(kafka: LocalKafka, proxy_port: int) -> Iterator[Proxy]:
    """The proxy between the workers and the broker."""
    with proxy(kafka.ports[0], proxy_port, messages) as made:
        yield made


@pytest.fixture
def behind(kafka: LocalKafka, between: Proxy, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """onecount whose workers meet Kafka through the proxy; the load and the looks at it do not."""
    with (
        local_redis() as server,
        deployed(
            *(kafka.bootstrap_of(DIRECT), server.url, topic_prefix, tmp_path),
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
        ) as running,
    ):
        for role in ROLES:
            running.start(role, ONECOUNT_BOOTSTRAP=between.address)
        yield running


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_late_commit_is_fenced_and_ends_no_later_transaction(behind: Deployment, between: Proxy, seed: int) -> None:
    """It comes while the next transaction is complete but for its own commit, so it would commit that if it could."""
    with behind.load(seed=seed):
        count_on(behind)
        late = between.hold_request(transactional_id(behind, "counter"))
        late.wait()
        behind.wait_until(lambda: in_doubt(behind, "counter"), "the commit times out")
        count_on(behind)
        present = between.hold_request(transactional_id(behind, "counter"))
        present.wait()
        before = committed(behind, "counter")
        assert is_open(behind)
        late.release()
        assert late.answer() in FENCED
        assert is_open(behind), "the late commit ended the transaction"
        assert committed(behind, "counter") == before
        present.release()
        assert present.answer() == 0
        behind.wait_until(lambda: committed(behind, "counter") != before, "the transaction is committed by its own")
    behind.finish()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_answer", [pytest.param(True, marks=pytest.mark.smoke), False])
def test_a_retry_of_dead_letters_whose_commit_is_in_doubt_asks_the_marks(
    kafka: LocalKafka, between: Proxy, topic_prefix: str, tmp_path: Path, is_answer: bool
) -> None:
    """Either it was done and its answer is lost, or it was not; its own late commit does nothing afterwards."""
    direct = kafka.bootstrap_of(DIRECT)
    with deployed(direct, "redis://nowhere", topic_prefix, tmp_path, request_timeout_ms=4_000) as deployment:
        letters.write_letters(deployment, [letters.conversion(f"e{number}") for number in range(5)], "key_mismatch")
        hold_back = between.hold_answer if is_answer else between.hold_request
        hold = hold_back(transactional_id_of_letters(deployment.settings))
        done = deployment.onecount("dlq", "retry", "--yes", ONECOUNT_BOOTSTRAP=between.address)
        assert done.returncode == 0, done.stderr
        assert (
            "their marks say that it was done" if is_answer else "it was not done, and is tried again"
        ) in done.stderr
        assert done.stdout.endswith("5 sent again\n")
        hold.release()
        assert hold.answer() in ({0} if is_answer else FENCED)
        assert letters.states(deployment) == {"retried": 5}
        assert set(letters.raw_ids(deployment).values()) == {2}


@pytest.mark.timeout(120)
def test_a_late_commit_ends_the_next_transaction_of_a_producer_that_was_kept(
    kafka: LocalKafka, between: Proxy, topic_prefix: str
) -> None:
    """Why a worker replaces its producer after any timeout: what it never committed would be."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_of(DIRECT)})
    admin.create_topics([NewTopic(topic_prefix, 1, 1)])[topic_prefix].result(ANSWER_S)
    kept = Producer({"bootstrap.servers": between.address, "transactional.id": topic_prefix, "log_level": 0})
    kept.init_transactions(ANSWER_S)
    kept.begin_transaction()
    kept.produce(topic_prefix, b"committed")
    late = between.hold_request(topic_prefix)
    with pytest.raises(KafkaException):
        kept.commit_transaction(2)
    late.wait()
    late.hang_up()
    kept.commit_transaction(ANSWER_S)  # it sends the request again, on a connection of its own
    kept.begin_transaction()
    kept.produce(topic_prefix, b"never committed")
    assert kept.flush(ANSWER_S) == 0
    assert readable(kafka, topic_prefix) == [b"committed"]
    late.release()
    assert late.answer() == 0
    deadline = time.monotonic() + ANSWER_S
    while readable(kafka, topic_prefix) != [b"committed", b"never committed"]:
        assert time.monotonic() < deadline, "the late commit ended nothing"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ROLES)
def test_a_commit_that_timed_out_is_what_the_group_says(
    behind: Deployment, between: Proxy, chance: random.Random, seed: int, role: str
) -> None:
    with behind.load(seed=seed):
        for is_answer in chance.sample([False, False, True, True], 4):
            count_on(behind)
            taken = take(between, behind, role, is_answer)
            wait_until_resolved(behind, taken)
            time.sleep(chance.uniform(0, 2))
            taken.hold.release()
    behind.finish()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("end_broker", [LocalKafka.kill, LocalKafka.stop], ids=["killed", "stopped"])
@pytest.mark.parametrize("role", ROLES)
def test_a_broker_that_goes_around_a_commit_leaves_it_done_or_undone(
    behind: Deployment, between: Proxy, kafka: LocalKafka, chance: random.Random, seed: int, role: str, end_broker: Any
) -> None:
    """It goes before the request has reached it, or after it has answered; in either case nobody hears an answer."""
    with behind.load(seed=seed):
        for is_answer in chance.sample([False, True], 2):
            count_on(behind)
            taken = take(between, behind, role, is_answer)
            end_broker(kafka)
            taken.hold.hang_up()
            time.sleep(REQUEST_TIMEOUT_S + chance.uniform(0.5, 3))
            kafka.start()
            wait_until_resolved(behind, taken)
            taken.hold.release()
    behind.finish()


@pytest.mark.timeout(300)
def test_a_broker_restarted_in_mid_transaction_at_random_moments_counts_exactly(
    behind: Deployment, kafka: LocalKafka, chance: random.Random, seed: int
) -> None:
    """The down times are shorter and longer than a commit waits, so that some are sent again and some time out."""
    with behind.load(rate=1000, seed=seed):
        for down_s in chance.sample([0, 0, 1, REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S + 3], 5):
            count_on(behind)
            time.sleep(chance.uniform(0, 1))
            chance.choice([kafka.kill, kafka.stop])()
            time.sleep(down_s)
            kafka.start()
    behind.finish()


@pytest.mark.timeout(200)
def test_an_open_transaction_on_the_groups_offsets_is_named_and_ended_as_the_runbook_says(
    behind: Deployment, kafka: LocalKafka, topic_prefix: str, seed: int
) -> None:
    """Somebody's script that set the offsets of a stopped worker's group, and never committed."""
    settings = behind.settings
    with behind.load(seed=seed):
        count_on(behind)
        behind.stop(behind.running[ROLES.index("counter")])
        stray = Producer({"bootstrap.servers": settings.bootstrap, "transactional.id": f"{topic_prefix}-stray"})
        stray.init_transactions(ANSWER_S)
        stray.begin_transaction()
        script = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": settings.counter_group})
        place = TopicPartition(settings.events_topics[0], 0, 0)
        stray.send_offsets_to_transaction([place], script.consumer_group_metadata(), ANSWER_S)
        script.close()
        behind.start("counter", ONECOUNT_BOOTSTRAP=settings.bootstrap)
        behind.wait_until(lambda: any("never ended" in why for why in in_doubt(behind, "counter")), "it says so", 60)
        listed = transactions(kafka, "list")
        names = [line.split()[0] for line in listed.splitlines() if line.split() and "Ongoing" in line]
        assert f"{topic_prefix}-stray" in names
        found = transactions(kafka, "describe", "--transactional-id", f"{topic_prefix}-stray")
        assert "__consumer_offsets" in found
        transactions(kafka, "forceTerminateTransaction", "--transactionalId", f"{topic_prefix}-stray")
        behind.wait_until(lambda: behind.owned("counter") == list(range(settings.partitions)), "it carries on", 60)
        count_on(behind)
    behind.finish()


def transactions(kafka: LocalKafka, *arguments: str) -> str:
    """What Kafka's bin/kafka-transactions.sh says."""
    command = [*tool_command("org.apache.kafka.tools.TransactionsCommand"), "--bootstrap-server"]
    done = subprocess.run(
        [*command, kafka.bootstrap_of(DIRECT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Taken(NamedTuple):
    """A commit that is held back, or whose answer is; how much its worker had logged by then."""

    hold: Hold
    role: str
    is_answer: bool
    logged: int


def take(between: Proxy, deployment: Deployment, role: str, is_answer: bool) -> Taken:
    """The next commit of a worker."""
    hold_back = between.hold_answer if is_answer else between.hold_request
    hold = hold_back(transactional_id(deployment, role))
    hold.wait()
    assert hold.error_code == (0 if is_answer else None)
    return Taken(hold, role, is_answer, len(deployment.events(role)))


def wait_until_resolved(deployment: Deployment, taken: Taken) -> None:
    """Until the worker has begun anew: by then it has found the batch to be published if it was, and only then."""

    def since() -> list[dict[str, Any]]:
        return deployment.events(taken.role)[taken.logged :]

    def opened() -> list[dict[str, Any]]:
        return [event for event in since() if event["event"] == "partitions" and event["owned"]]

    deployment.wait_until(opened, "the worker begins anew", RESOLVED_S)
    doubt = next(event["why"] for event in since() if event["event"].startswith("session ended"))
    assert doubt.startswith("Kafka: "), doubt
    assert ("replaying" in opened()[0]) is taken.is_answer, since()


def count_on(deployment: Deployment) -> None:
    """Waits until both stages have carried on, on every partition."""
    wait_until_counting(deployment, deployment.settings.redis_url.get_secret_value())


def transactional_id(deployment: Deployment, role: str) -> str:
    """Of the worker in slot 0."""
    settings = deployment.settings
    return f"{group(deployment, role)}-{settings.worker_id}-0"


def group(deployment: Deployment, role: str) -> str:
    return deployment.settings.counter_group if role == "counter" else deployment.settings.aggregator_group


def in_doubt(deployment: Deployment, role: str) -> list[str]:
    """Why sessions of a worker ended because of a commit."""
    ended = [event["why"] for event in deployment.events(role) if event["event"].startswith("session ended")]
    return [why for why in ended if why.startswith("Kafka: ")]


def committed(deployment: Deployment, role: str) -> dict[tuple[str, int], int]:
    """The group's offsets, without what an open transaction would commit."""
    admin = AdminClient({"bootstrap.servers": deployment.settings.bootstrap})
    wanted = ConsumerGroupTopicPartitions(group(deployment, role))
    answer = admin.list_consumer_group_offsets([wanted], require_stable=False)[wanted.group_id].result(ANSWER_S)
    return {(place.topic, place.partition): place.offset for place in answer.topic_partitions}


def is_open(deployment: Deployment) -> bool:
    """Whether a transaction of the counter is: it holds the deltas' readers back."""
    settings = deployment.settings
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    places = [TopicPartition(settings.deltas_topic, partition) for partition in range(settings.partitions)]
    every, stable = (
        [
            answer.result(ANSWER_S).offset
            for answer in admin.list_offsets(dict.fromkeys(places, OffsetSpec.latest()), isolation_level=level).values()
        ]
        for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED)
    )
    return any(mark < end for mark, end in zip(stable, every, strict=True))


def readable(kafka: LocalKafka, topic: str) -> list[bytes]:
    """What a reader of committed records finds."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_of(DIRECT),
            "group.id": "look",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[bytes] = []
        while True:
            for message in consumer.consume(100, 1.0):
                if message.error() is not None:
                    return found
                found.append(message.value())
    finally:
        consumer.close()
