"""The Kafka clients of a session, and the properties that the protocol of DESIGN section 4 rests on."""

import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from app.settings import Settings

# How long a rebalance waits for members that neither joined nor left, as a coordinator that has just moved may know of.
REBALANCE_MS: Final = 60_000
READ_AHEAD_BYTES: Final = 16 * 2**20
# A partition is not asked for more while what is fetched ahead is full. librdkafka looks again after a second, long after all of it
# is taken: whoever has once been 25,000 records behind then reads in bursts of a second for ever.
QUEUE_BACKOFF_MS: Final = 20
HEARTBEAT_MAX_MS: Final = 3_000  # what Kafka has as its default
_TRIES: Final = 4  # to be told of topics, in the time that one answer may take
_RIGHTS: Final = "deploy/kafka-acls.sh gives what each principal needs"
_ADVICE: Final = {  # by the code's name, since some errors arrive as text only
    "_AUTHENTICATION": "see that ONECOUNT_KAFKA, its user and the password or client secret are right",
    "_SSL": "see that the certificates in ONECOUNT_KAFKA are right",
    "_INVALID_ARG": "see that ONECOUNT_KAFKA, its files and their passwords are right",
    "TOPIC_AUTHORIZATION_FAILED": f"a right on a topic is missing: {_RIGHTS}",
    "GROUP_AUTHORIZATION_FAILED": f"a right on a consumer group is missing: {_RIGHTS}",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": f"the right to its transactional ids is missing: {_RIGHTS}",
    "CLUSTER_AUTHORIZATION_FAILED": f"a right on the cluster is missing: {_RIGHTS}",
}


def explained(error: Exception) -> str:
    """An error's text, and what to do where Kafka refused who asked or what was asked. All of these are tried again."""
    text = str(error)
    advice = next((advice for name, advice in _ADVICE.items() if f"code={name}," in text), None)
    if isinstance(error, KafkaException) and isinstance(error.args[0], KafkaError):
        text = error.args[0].str()
    return f"{text}; {advice}" if advice and advice not in text else text


class Topic(NamedTuple):
    """What tells a topic from another one of its name: its partitions, and the id that Kafka gave it when it was created."""

    partitions: int
    id: str


class Clients(Protocol):
    """Where a session gets its clients; tests give ones in memory."""

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer."""

    def consumer(self, group: str, worker: str) -> Consumer:
        """A consumer of the group, not subscribed yet."""

    def reader(self, ahead_bytes: int = READ_AHEAD_BYTES) -> Consumer:
        """A consumer outside any group, for reading a partition back."""

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of the topics that exist."""


class KafkaClients:
    """Real clients, by the settings. `logger` makes the logger of a kind of client ("consumer", "producer", "reader", "admin"),
    which is given its lines as it is polled; without one librdkafka writes them to standard error.
    """

    def __init__(self, settings: Settings, logger: Callable[[str], Any] | None = None) -> None:
        self.settings = settings
        self._logger = logger

    def _to(self, client: str) -> dict[str, Any]:
        return {} if self._logger is None else {"logger": self._logger(client)}

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer. Its `commit_transaction` raises KafkaException, with the topic, for a record that its
        principal may not write; librdkafka itself only says how many were not delivered.
        """
        report = {"on_delivery": _undelivered(), "delivery.report.only.error": True}
        return _PunctualProducer(producer_properties(self.settings, transactional_id) | report, **self._to("producer"))

    def consumer(self, group: str, worker: str) -> Consumer:
        """A consumer of the group, not subscribed yet."""
        return Consumer(consumer_properties(self.settings, group, worker), **self._to("consumer"))

    def reader(self, ahead_bytes: int = READ_AHEAD_BYTES) -> Consumer:
        """A consumer outside any group, for reading a partition back, that fetches about so much ahead. Its `consume` raises
        KafkaException where the brokers refuse its identity, which any other client waits out without a word.
        """
        properties = reader_properties(self.settings, ahead_bytes) | {"error_cb": _raise_refusal}
        return Consumer(properties, **self._to("reader"))

    def follower(self) -> Consumer:
        """A reader that goes on at the end of a log, where the broker keeps it waiting."""
        properties = reader_properties(self.settings) | {"error_cb": _raise_refusal, "fetch.wait.max.ms": 250}
        return Consumer(properties, **self._to("reader"))

    def member(self, properties: dict[str, Any]) -> Consumer:
        """A consumer of a group, by properties of its own."""
        return Consumer(self.settings.client(**properties), **self._to("consumer"))

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of the topics that exist. Raises KafkaException where the brokers do not say.

        A client goes on asking the broker that it was told of first, even if that has died since. So each call has a client
        of its own, and several one after the other where there is no answer.
        """
        deadline_s = time.monotonic() + self.settings.request_timeout_ms / 1000
        while True:
            try:
                return self._describe(list(names))
            except KafkaException as error:
                if error.args[0].code() != KafkaError._TIMED_OUT or time.monotonic() >= deadline_s:
                    raise

    def _describe(self, names: list[str]) -> dict[str, Topic]:
        admin = AdminClient(self.settings.client(error_cb=_raise_refusal), **self._to("admin"))
        timeout_s = self.settings.request_timeout_ms / 1000 / _TRIES
        found = {}
        for name, answer in admin.describe_topics(TopicCollection(names), request_timeout=timeout_s).items():
            failure = (
                answer.exception()
            )  # if it were raised here, its traceback and the answer would keep each other, and the client
            if failure is None:
                described = answer.result()
                found[name] = Topic(len(described.partitions), str(described.topic_id))
            elif failure.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                admin.poll(0)  # raises what stands behind a mere timeout, if it is a refusal
                raise KafkaException(KafkaError(failure.args[0].code(), f"Kafka: {name}: {explained(failure)}"))
        return found


class _PunctualProducer(Producer):
    """librdkafka's `send_offsets_to_transaction` waits past its timeout, without an end, while no broker is up that could
    name the group's coordinator; a worker that waits in it tells nobody that it does not count.
    """

    def send_offsets_to_transaction(self, positions: Any, group_metadata: Any, timeout: float) -> None:
        """As librdkafka's, within the timeout and a second. A call that is given up holds the producer until it returns; it
        can do no harm, as a new producer of the same id has fenced this one before anything else is read or sent.
        """
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()

        def call() -> None:
            try:
                Producer.send_offsets_to_transaction(self, positions, group_metadata, timeout)
                outcome.put(None)
            except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
                outcome.put(error)

        Thread(target=call, name="offsets", daemon=True).start()
        try:
            failure = outcome.get(timeout=timeout + 1)
        except Empty:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, "no broker took the offsets of a transaction in time")
            ) from None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # an error that its own traceback refers to would keep this producer alive


def why_unreachable(settings: Settings) -> str | None:
    """Why brokers that don't answer refuse this client, as far as they or TLS say so."""
    try:
        KafkaClients(settings).topics([settings.policy_topic])
    except KafkaException as error:
        if error.args[0].code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            return error.args[0].str()
    return None


def _undelivered() -> Callable[[KafkaError | None, Message], None]:
    told = False

    def tell(error: KafkaError | None, message: Message) -> None:
        nonlocal told
        if error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and not told:
            told = True  # the others' reports may come where nobody listens any more
            raise KafkaException(KafkaError(error.code(), f"{message.topic()}: {explained(KafkaException(error))}"))

    return tell


def _raise_refusal(error: KafkaError) -> None:
    if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
        raise KafkaException(KafkaError(error.code(), explained(KafkaException(error))))


def reader_properties(settings: Settings, ahead_bytes: int = READ_AHEAD_BYTES) -> dict[str, Any]:
    """A consumer that reads committed records by assignment and commits nothing."""
    return settings.client(
        **{
            "group.id": f"{settings.counter_group}.read",  # never joined, but librdkafka looks for its coordinator
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "queued.min.messages": 20_000,
            "queued.max.messages.kbytes": ahead_bytes // 1024,
            "fetch.message.max.bytes": min(ahead_bytes, 2**20),  # as the brokers compressed it
            "fetch.wait.max.ms": 10,  # the end of a log is told only after this wait
            "fetch.queue.backoff.ms": QUEUE_BACKOFF_MS,
        }
    )


def producer_properties(settings: Settings, transactional_id: str) -> dict[str, Any]:
    """The transactional producer's properties."""
    return settings.client(
        **{
            "transactional.id": transactional_id,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "batch.num.messages": 100_000,
            "compression.type": "lz4",
            "message.max.bytes": 8 * 2**20,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )


def consumer_properties(settings: Settings, group: str, worker: str) -> dict[str, Any]:
    """The group consumer's properties. It starts only where `reopen` says: there is no automatic reset."""
    properties: dict[str, Any] = {
        "group.id": group,
        "client.id": worker,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        # how often the client asks where each log begins, for the lag as a share of what is retained
        "statistics.interval.ms": 15_000,
        "group.protocol": settings.group_protocol,
        "fetch.message.max.bytes": 2 * 2**20,  # of a partition in one answer; 8 MiB took 80 MB more and no less CPU
        "fetch.max.bytes": 16 * 2**20,  # of all partitions in one answer, as compressed
        "queued.max.messages.kbytes": 24_576,
        "queued.min.messages": 25_000,  # a batch of 50,000 is at hand in two partitions; four times as many took 120 MB more and no less CPU
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": QUEUE_BACKOFF_MS,
        "max.poll.interval.ms": max(REBALANCE_MS, settings.session_timeout_ms),
    }
    if settings.group_protocol == "classic":
        properties |= {
            "partition.assignment.strategy": "range" if settings.is_eager else "cooperative-sticky",
            "session.timeout.ms": settings.session_timeout_ms,
            # others learn of a rebalance with their next heartbeat
            "heartbeat.interval.ms": min(settings.session_timeout_ms // 6, HEARTBEAT_MAX_MS),
        }
    if settings.static_membership:
        properties["group.instance.id"] = f"{group}-{worker}"
    return settings.client(**properties)
