"""The local Kafka and Redis behave like the real ones they are, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local import LocalKafka, LocalServiceError, NotInstalledError, local_kafka, local_redis

pytestmark = pytest.mark.integration

DEADLINE_S = 30.0
CHILDREN_GONE_WITHIN_S = 5.0

PARENT = """
import json, time
from app.local import local_kafka, local_redis
with local_kafka() as kafka, local_redis() as redis:
    folders = [str(kafka.log_paths[0].parents[1]), str(redis.log_path.parent)]
    print(json.dumps({"pids": [*kafka.pids, redis.pid], "folders": folders}), flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalKafka]:
    with local_kafka() as cluster:
        yield cluster


@pytest.fixture
def topic(kafka: LocalKafka, topic_prefix: str) -> str:
    create_topic(kafka, topic_prefix)
    return topic_prefix


def create_topic(kafka: LocalKafka, name: str, replicas: int = 1) -> None:
    client = AdminClient({"bootstrap.servers": kafka.bootstrap})
    client.create_topics([NewTopic(name, num_partitions=1, replication_factor=replicas)])[name].result(DEADLINE_S)


def new_producer(kafka: LocalKafka, **settings: str) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0} | settings)


def new_transactional_producer(kafka: LocalKafka, name: str) -> Producer:
    producer = new_producer(kafka, **{"transactional.id": name})
    producer.init_transactions(DEADLINE_S)
    return producer


def read_to_end(kafka: LocalKafka, topic: str, isolation: str = "read_committed") -> list[bytes]:
    """Every value from the beginning to the end, which for read_committed is where the first open transaction began."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "test",
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    deadline_s = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline_s:
            message = consumer.poll(0.1)
            if message is None:
                continue
            if message.error() is None:
                values.append(message.value())
            elif message.error().code() == KafkaError._PARTITION_EOF:
                return values
    finally:
        consumer.close()
    raise AssertionError(f"the end of {topic} was not reached in {DEADLINE_S} s")


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=DEADLINE_S, retry=Retry(NoBackoff(), 0))


def wait_until(is_true: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that nobody has collected (a zombie)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# --- Kafka ----------------------------------------------------------------------------------------------------------


def test_a_transaction_is_seen_once_it_is_committed_and_not_before(kafka: LocalKafka, topic: str) -> None:
    producer = new_transactional_producer(kafka, topic)
    producer.begin_transaction()
    producer.produce(topic, b"counted")
    producer.flush(DEADLINE_S)
    assert read_to_end(kafka, topic, "read_uncommitted") == [b"counted"]
    assert read_to_end(kafka, topic) == []
    producer.commit_transaction(DEADLINE_S)
    assert read_to_end(kafka, topic) == [b"counted"]


def test_an_aborted_transaction_is_never_seen(kafka: LocalKafka, topic: str) -> None:
    producer = new_transactional_producer(kafka, topic)
    producer.begin_transaction()
    producer.produce(topic, b"aborted")
    producer.flush(DEADLINE_S)
    producer.abort_transaction(DEADLINE_S)
    producer.begin_transaction()
    producer.produce(topic, b"committed")
    producer.commit_transaction(DEADLINE_S)
    assert read_to_end(kafka, topic, "read_uncommitted") == [b"aborted", b"committed"]
    assert read_to_end(kafka, topic) == [b"committed"]


def test_a_topic_is_not_made_by_writing_to_it(kafka: LocalKafka, topic_prefix: str) -> None:
    errors: list[KafkaError | None] = []
    producer = new_producer(kafka, **{"message.timeout.ms": "1000"})
    producer.produce(topic_prefix, b"lost", on_delivery=lambda error, _: errors.append(error))
    producer.flush(DEADLINE_S)
    assert len(errors) == 1
    assert errors[0] is not None
    assert (
        topic_prefix not in AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=DEADLINE_S).topics
    )


@pytest.mark.parametrize("end", [LocalKafka.stop, LocalKafka.kill])
def test_a_broker_comes_back_on_its_port_with_its_data(
    kafka: LocalKafka, topic: str, end: Callable[[LocalKafka], None]
) -> None:
    producer = new_producer(kafka, **{"acks": "all"})
    producer.produce(topic, b"kept")
    producer.flush(DEADLINE_S)
    bootstrap, [pid] = kafka.bootstrap, kafka.pids
    end(kafka)
    assert kafka.pids == []
    assert not is_running(pid)
    kafka.start()
    assert kafka.bootstrap == bootstrap
    assert read_to_end(kafka, topic) == [b"kept"]


@pytest.mark.slow
def test_a_folder_that_was_given_is_kept_and_continued(tmp_path: Path) -> None:
    with local_kafka(data_dir=tmp_path) as kafka:
        create_topic(kafka, "kept")
        producer = new_producer(kafka)
        producer.produce("kept", b"value")
        producer.flush(DEADLINE_S)
    with local_kafka(data_dir=tmp_path) as kafka:
        assert read_to_end(kafka, "kept") == [b"value"]


@pytest.mark.faults
@pytest.mark.slow
def test_three_brokers_go_on_when_one_of_them_is_killed(topic_prefix: str) -> None:
    with local_kafka(brokers=3) as kafka:
        create_topic(kafka, topic_prefix, replicas=3)
        kafka.kill(broker=1)
        producer = new_transactional_producer(kafka, topic_prefix)
        producer.begin_transaction()
        producer.produce(topic_prefix, b"two of three")
        producer.commit_transaction(DEADLINE_S)
        assert read_to_end(kafka, topic_prefix) == [b"two of three"]
        kafka.start(broker=1)
        assert len(kafka.pids) == 3


def test_a_broker_that_cannot_start_says_why() -> None:
    why = r"Kafka broker 0 ended by itself(.|\n)*Too small maximum heap(.|\n)*What to do"
    with pytest.raises(LocalServiceError, match=why), local_kafka(heap="1k"):
        pass


def test_a_setting_that_kafka_does_not_take_is_named() -> None:
    why = r"Invalid value soon for configuration log\.retention\.ms"
    with pytest.raises(LocalServiceError, match=why), local_kafka(log_retention_ms="soon"):
        pass


def test_missing_jars_say_make_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECOUNT_KAFKA_LIBS", str(tmp_path))
    with pytest.raises(NotInstalledError, match="run: make setup"), local_kafka():
        pass


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_redis_keeps_what_was_synced_when_it_is_killed() -> None:
    with local_redis() as server:
        with connect(server.url) as client:
            client.set("kept", "value")

            def is_synced() -> bool:
                info = client.info("persistence")
                return info["aof_buffer_length"] == info["aof_pending_bio_fsync"] == 0

            assert wait_until(is_synced, DEADLINE_S)
        server.kill()
        server.start()
        with connect(server.url) as client:
            assert client.get("kept") == b"value"


def test_a_full_redis_refuses_and_evicts_nothing() -> None:
    def fill(client: redis.Redis) -> None:
        for number in range(100):
            client.set(f"key-{number}", b"x" * 100_000)

    with local_redis(maxmemory="4mb") as server, connect(server.url) as client:
        client.set("kept", "value")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        assert client.exists("kept", "key-0") == 2


def test_a_missing_redis_server_says_make_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="run: make setup"), local_redis():
        pass


# --- Nothing is left behind -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child when its parent is killed")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_the_children_are_gone_soon_after_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with parent:
        children = json.loads(parent.stdout.readline())
        assert all(is_running(pid) for pid in children["pids"])
        parent.send_signal(how)
    assert wait_until(lambda: not any(map(is_running, children["pids"])), CHILDREN_GONE_WITHIN_S)
    if how == signal.SIGINT:
        assert [folder for folder in children["folders"] if Path(folder).exists()] == []


def test_a_child_outlives_the_thread_that_started_it() -> None:
    with local_redis() as server:
        server.kill()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        time.sleep(0.2)  # the kernel would have killed it by now
        with connect(server.url) as client:
            assert client.ping()


def test_what_the_services_fixture_gives_works(services, redis_client: redis.Redis) -> None:
    assert AdminClient({"bootstrap.servers": services.bootstrap}).list_topics(timeout=DEADLINE_S).brokers
    assert redis_client.ping()
