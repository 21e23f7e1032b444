"""The command's steps: the forget reaches its partition, the counter comes past it, older rows are deleted, and what remains is
told. Each may be done again.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final, NamedTuple

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from app.columns.texts import texts_of
from app.contract.events import Rejection, judge_bytes, judge_fields
from app.contract.reasons import UNKNOWN_EVENT_TYPE
from app.contract.rows import decode_dead_letter
from app.engine.clients import Clients, KafkaClients
from app.engine.rebuild import read_partition
from app.intake.partitioner import owners
from app.policy.model import Policy
from app.privacy.refusal import ForgetRefused
from app.privacy.remains import Remains, find_remains
from app.privacy.rows import Person, Removed, delete_rows, leads_left, row_topics
from app.publish.producer import producer_properties
from app.settings import Settings
from app.verify.logs import wait_until_read
from app.verify.records import VerifyError

AGAIN: Final = "give the same command again"
DESK_S: Final = 10.0  # a desk that runs has withdrawn its leads by then


class Forgotten(NamedTuple):
    """What was done: the forget's own place (topic, partition, offset), the rows deleted by topic, the leads that still stand
    by topic, and what remains.
    """

    person: Person
    place: tuple[str, int, int]
    removed: dict[str, Removed]
    leads: dict[str, int]
    remains: list[Remains]


def forget(
    settings: Settings, policy: Policy, advertiser_id: str, user_id: str, wait_s: float, tell: Callable[[str], None]
) -> Forgotten:
    """Forgets a user of an advertiser up to now. `policy`: the recorded one; `wait_s`: for the counter to come past it;
    `tell`: takes a line about what is waited for.

    Raises `ForgetRefused`, KafkaException.
    """
    clients = KafkaClients(settings)
    now_ms = int(time.time() * 1000)
    person = Person(advertiser_id, user_id, now_ms)
    event = encode(person)
    topics = row_topics(settings, policy)
    first = settings.events_topics[0]
    partition = owner_of(clients, settings, policy, user_id)
    begun = {topic: _end(clients, settings, topic, partition) for topic in (*topics, settings.dlq_topic)}
    offset = _produce(settings, policy, first, partition, [(user_id.encode(), event)])[0]
    tell(f"the forget lies in {first}/{partition}/{offset}; waiting for the counter of the partition")
    _wait(settings, first, partition, offset, wait_s)
    tell(f"reading partition {partition} of {', '.join(topics)} for rows that are older than the counters' state")
    _refuse_refused(clients, settings, (first, partition, offset), begun[settings.dlq_topic])

    def delete(topic: str, partition: int, keys: list[bytes]) -> None:
        _produce(settings, policy, topic, partition, [(key, None) for key in keys])

    removed = {topic: delete_rows(clients, topic, partition, person, begun[topic], delete) for topic in topics}
    leads = _wait_for_the_desk(clients, settings, person)
    remains = find_remains(settings, policy, clients, topics, now_ms)
    return Forgotten(person, (first, partition, offset), removed, leads, remains)


def encode(person: Person) -> bytes:
    """The event, under a new id. Raises `ForgetRefused` where the contract would refuse it."""
    raw = orjson.dumps(
        {
            "event_id": f"forget-{uuid.uuid4().hex}",
            "event_type": "forget",
            "event_time": person.until_ms,
            "advertiser_id": person.advertiser_id,
            "user_id": person.user_id,
        }
    )
    judged = judge_bytes(raw)
    if not isinstance(judged, Rejection):
        judged = judge_fields(judged, {}, person.until_ms)
    if isinstance(judged, Rejection):
        raise ForgetRefused(f"{judged.field}: {judged.detail}; no event can be of such a user")
    return raw


def owner_of(clients: Clients, settings: Settings, policy: Policy, user_id: str) -> int:
    """The partition that owns a user."""
    topic = settings.events_topics[0]
    known = clients.topics([topic])
    if topic not in known:
        raise ForgetRefused(f"no such topic: {topic}; run `onecount topics create`, or give the right to describe it")
    return int(owners(texts_of([user_id.encode()]), known[topic].partitions, policy.bounds.partitioner)[0])


def _end(clients: Clients, settings: Settings, topic: str, partition: int) -> int:
    with closing(clients.reader()) as reader:
        return reader.get_watermark_offsets(TopicPartition(topic, partition), settings.request_timeout_ms / 1000)[1]


def _produce(
    settings: Settings, policy: Policy, topic: str, partition: int, records: Iterable[tuple[bytes, bytes | None]]
) -> list[int]:
    """Writes records as (key, value), acknowledged by all replicas; their offsets. Raises KafkaException."""
    offsets: list[int] = []
    failures: list[KafkaError] = []

    def report(error: KafkaError | None, message: Message) -> None:
        if error is None:
            offsets.append(message.offset())
        else:
            failures.append(error)

    told = {"delivery.report.only.error": False, "client.id": "onecount-forget", "linger.ms": 0}
    producer = Producer(producer_properties(settings, policy.bounds.partitioner) | told)
    for key, value in records:
        producer.produce(topic, value, key, partition, on_delivery=report)
    unsent = producer.flush(3 * settings.request_timeout_ms / 1000)
    if failures or unsent:
        raise KafkaException(failures[0] if failures else KafkaError(KafkaError._TIMED_OUT, "not acknowledged"))
    return offsets


def _wait(settings: Settings, topic: str, partition: int, offset: int, wait_s: float) -> None:
    try:
        wait_until_read(settings, settings.counter_group, {(topic, partition): (offset, offset + 1)}, wait_s)
    except VerifyError as error:
        raise ForgetRefused(
            f"the forget lies in {topic}/{partition}/{offset}, but no counter has come past it in {wait_s:g} s. It holds as soon as one does; "
            f"rows that are older than the counters' state stand until then: start the counters, and {AGAIN}"
        ) from error


def _wait_for_the_desk(clients: Clients, settings: Settings, person: Person) -> dict[str, int]:
    deadline_s = time.monotonic() + DESK_S
    while any((left := leads_left(clients, settings, person)).values()) and time.monotonic() < deadline_s:
        time.sleep(DESK_S / 20)
    return left


def _refuse_refused(clients: Clients, settings: Settings, place: tuple[str, int, int], since: int) -> None:
    """Raises `ForgetRefused` where the counter took the event for none: a clock that is wrong."""
    for message in read_partition(clients, settings.dlq_topic, place[1], since, None):
        letter = decode_dead_letter(message.value() or b"")
        if (letter.topic, letter.partition, letter.offset) == place:
            is_old = letter.reason == UNKNOWN_EVENT_TYPE
            hint = "the counters are of an older release" if is_old else "see that this machine's clock is right"
            raise ForgetRefused(
                f"the counter refused the forget: {letter.reason} ({letter.detail}); {hint}, and {AGAIN}"
            )
