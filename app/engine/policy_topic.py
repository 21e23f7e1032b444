"""Reads and writes the policy record in Kafka, so that all workers judge by the same versions."""

import hashlib
import time
import uuid

import msgspec
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from app.engine.clients import Clients, Topic
from app.engine.rebuild import read_partition
from app.policy import record
from app.policy.load import load_policy
from app.policy.model import Policy
from app.settings import Settings


def establish(settings: Settings, clients: Clients, runs: bool = False) -> tuple[Policy, int]:
    """The policy in force by file and record, and the record's end offset before it was read; records a first or a new version.
    `runs`: as in `record.fit`.

    Raises `PolicyError` where the file does not fit the record. Two workers that start at once with different files
    both write; the log's order decides, and the one that lost finds the other's version when it reads again.
    """
    wanted, effective_from_ms = load_policy(settings.policy)
    end = end_offset(settings, clients)
    policy, fresh = record.fit(_read(settings, clients), wanted, effective_from_ms, int(time.time() * 1000), runs)
    if fresh is not None:
        _write(settings, clients, fresh)
        end = end_offset(settings, clients)
        policy, _ = record.fit(_read(settings, clients), wanted, effective_from_ms, int(time.time() * 1000))
    return policy, end


def recorded_policy(settings: Settings, clients: Clients, runs: bool = False) -> Policy:
    """The policy in force for a reader such as `verify`: the file's if nothing is recorded yet. `runs`: as in `record.fit`.
    Writes nothing; raises `PolicyError`.
    """
    wanted, effective_from_ms = load_policy(settings.policy)
    return record.fit(_read(settings, clients), wanted, effective_from_ms, int(time.time() * 1000), runs)[0]


def end_offset(settings: Settings, clients: Clients) -> int:
    """Where the record ends now: a worker that sees it move reads the policy anew."""
    reader = clients.reader()
    try:
        return reader.get_watermark_offsets(
            TopicPartition(settings.policy_topic, 0), settings.request_timeout_ms / 1000
        )[1]
    finally:
        reader.close()


def version_count(settings: Settings, clients: Clients) -> int:
    """How many versions are recorded; equal records of workers that started at once are one."""
    return len(_read(settings, clients))


def policy_values(settings: Settings, clients: Clients) -> list[bytes]:
    """What is recorded, in log order."""
    values = [message.value() for message in read_partition(clients, settings.policy_topic, 0, OFFSET_BEGINNING, None)]
    return [value for value in values if value is not None]


def write_topics(settings: Settings, clients: Clients, topics: dict[str, Topic]) -> None:
    """Records topics that the counts are made with from now on, beside the version in force."""
    latest = _read(settings, clients)[-1]
    _write(settings, clients, msgspec.structs.replace(latest, topics=topics))


def copy_versions(settings: Settings, other: Settings, clients: Clients) -> None:
    """Records the versions of one deployment for another one too, which has none yet; the topics are each one's own."""
    for version in _read(settings, clients):
        _write(other, clients, msgspec.structs.replace(version, topics={}))


def _read(settings: Settings, clients: Clients) -> list[record.Recorded]:
    return record.in_force(policy_values(settings, clients))


def _write(settings: Settings, clients: Clients, fresh: record.Recorded) -> None:
    value = record.encode(fresh)
    # the digest keeps compaction from replacing another worker's version of the same number
    key = f"{fresh.version.number}:{hashlib.sha256(value).hexdigest()[:16]}"
    # an id of its own, since several workers of one host may record at once and must not fence each other
    producer = clients.producer(f"{settings.counter_group}-policy-{uuid.uuid4()}")
    producer.init_transactions(settings.request_timeout_ms / 1000)
    producer.begin_transaction()
    producer.produce(settings.policy_topic, value, key)
    producer.commit_transaction(settings.request_timeout_ms / 1000)
