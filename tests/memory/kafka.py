"""Kafka's clients in memory: what `app.engine.session.Session` uses of confluent-kafka, on a `Broker` of this process.

A test drives everything by hand: who is alive and who is to own a partition (`Group`), how many records a `consume` gives
(`MemoryConsumer.grant`), and what becomes of a commit (`ProducerId.fates`). As in librdkafka, the rebalance callbacks run
inside `consume`, a member is fenced once the group has gone on without it, and offsets that an open transaction carries
are not told.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, KafkaError, TopicPartition

from tests.memory.log import Broker, Fate, MemoryMessage, Outcome, Place, Transaction, failure

Callback = Callable[["MemoryConsumer", list[TopicPartition]], None]


class Member(NamedTuple):
    """What `consumer_group_metadata` gives: a membership, which ends when its consumer is thought dead."""

    group: str
    number: int


class Group:
    """A consumer group, moved by hand. `wanted` names the worker that is to own each partition.

    A partition whose worker is not there goes to the first member by name. A partition passes from a living member to the
    next only when its owner has been told.
    """

    def __init__(self, name: str, broker: Broker) -> None:
        self.name = name
        self.broker = broker
        self.wanted: dict[int, str] = {}
        self.members: dict[Member, MemoryConsumer] = {}
        self.owners: dict[int, Member] = {}
        self.joined = 0

    def join(self, consumer: "MemoryConsumer") -> Member:
        """A new membership."""
        self.joined += 1
        member = Member(self.name, self.joined)
        self.members[member] = consumer
        return member

    def leave(self, member: Member | None) -> None:
        """Ends a membership: its consumer left, or was silent for the session timeout."""
        self.members.pop(member, None)  # type: ignore[arg-type]
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner != member}

    def target(self, partition: int) -> Member | None:
        """Who is to own a partition now."""
        ordered = sorted(self.members, key=lambda member: (self.members[member].worker, member.number))
        for member in ordered:
            if self.members[member].worker == self.wanted.get(partition):
                return member
        return ordered[0] if ordered else None


class MemoryConsumer:
    """One consumer: a member of a group once it has subscribed, or a reader that is assigned by hand.

    `grant`: how many records the next `consume` may give (None: all there are); `turn`: with which of the assigned
    partitions it begins.
    """

    def __init__(self, broker: Broker, group: Group | None, worker: str) -> None:
        self.broker = broker
        self.group = group
        self.worker = worker
        self.grant: int | None = None
        self.paused: set[Place] = set()
        self.turn = 0
        self.member: Member | None = None
        self.places: dict[Place, int] = {}  # the next offset to fetch of each
        self.told: dict[Place, int] = {}  # the offset at which the end was told last
        self.closed = False
        self._topic = ""
        self._callbacks: dict[str, Callback] = {}

    def subscribe(self, topics: list[str], on_assign: Callback, on_revoke: Callback, on_lost: Callback) -> None:
        assert self.group is not None
        (self._topic,) = topics
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self.member = self.group.join(self)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[MemoryMessage]:
        assert not self.closed, "a closed consumer raises"
        assert num_messages > 0
        if self.group is not None:
            self._follow_group()
        limit = num_messages if self.grant is None else min(num_messages, self.grant)
        found: list[MemoryMessage] = []
        places = sorted(self.places.keys() - self.paused)
        first = self.turn % len(places) if places else 0
        for place in places[first:] + places[:first]:
            found += self._fetch(place, limit - len(found))
        if self.grant is not None:
            self.grant -= sum(message.error() is None for message in found)
        return found

    def _fetch(self, place: Place, limit: int) -> list[MemoryMessage]:
        log, at = self.broker.logs[place], self.places[place]
        if at < log.first:
            if self.group is not None:  # auto.offset.reset is "error" there
                return [MemoryMessage(place, at, error=KafkaError._AUTO_OFFSET_RESET)]
            at = log.first
        found, self.places[place] = log.read(at, max(limit, 0))
        end = self.places[place]
        if self.group is None and self.told.get(place) == end and log.open:
            self.broker.expire(log)  # whoever reads on where open transactions stand waits until they time out
        if end >= log.stable_end() and self.told.get(place) != end:
            self.told[place] = end
            return [*found, MemoryMessage(place, end, error=KafkaError._PARTITION_EOF)]
        return found

    def _follow_group(self) -> None:
        group = self.group
        assert group is not None
        if self.member not in group.members:  # it was thought dead, and learns so only now
            self._call("lost", sorted({partition for _, partition in self.places}))
            self.member = group.join(self)
        mine = [partition for partition, owner in group.owners.items() if owner == self.member]
        revoked = [partition for partition in mine if group.target(partition) != self.member]
        for partition in revoked:
            self._call("revoke", [partition])
            del group.owners[partition]
        for partition in range(self.broker.topics[self._topic]):
            if group.target(partition) == self.member and partition not in group.owners:
                group.owners[partition] = self.member  # type: ignore[assignment]
                self._call("assign", [partition])

    def _call(self, name: str, partitions: list[int]) -> None:
        if partitions:
            self._callbacks[name](self, [TopicPartition(self._topic, partition) for partition in partitions])

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            if place.offset != OFFSET_INVALID:
                self.places[place.topic, place.partition] = place.offset
                self.told.pop((place.topic, place.partition), None)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {(place.topic, place.partition) for place in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {(place.topic, place.partition) for place in partitions}

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            self.places.pop((place.topic, place.partition), None)

    def assign(self, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            log = self.broker.logs[place.topic, place.partition]
            self.places[log.place] = log.first if place.offset == OFFSET_BEGINNING else place.offset

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert self.group is not None
        if self.broker.is_unstable(self.group.name, {(place.topic, place.partition) for place in partitions}):
            raise failure(KafkaError._TIMED_OUT, "the offsets are not stable")
        known = self.broker.offsets.get(self.group.name, {})
        found = []
        for place in partitions:
            offset, metadata = known.get((place.topic, place.partition), (OFFSET_INVALID, ""))
            found.append(TopicPartition(place.topic, place.partition, offset, metadata=metadata))
        return found

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        log = self.broker.logs[partition.topic, partition.partition]
        return log.first, len(log.entries) if cached else log.stable_end()

    def offsets_for_times(self, places: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        found = []
        for place in places:
            log = self.broker.logs[place.topic, place.partition]
            since = (
                message.offset()
                for message, _ in log.entries[log.first : log.stable_end()]
                if message is not None and message.timestamp()[1] >= place.offset
            )
            found.append(TopicPartition(place.topic, place.partition, next(since, OFFSET_END)))
        return found

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [
            TopicPartition(place.topic, place.partition, self.places[place.topic, place.partition])
            for place in partitions
        ]

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        return SimpleNamespace(
            topics={
                name: SimpleNamespace(partitions=dict.fromkeys(range(count)), error=None)
                for name, count in self.broker.topics.items()
            }
        )

    def consumer_group_metadata(self) -> Member | None:
        return self.member

    def close(self) -> None:
        if self.closed:
            return
        if self.group is not None and self.member in self.group.members:
            self._call("revoke", [number for number, owner in self.group.owners.items() if owner == self.member])
            self.group.leave(self.member)
        self.closed = True


class MemoryProducer:
    """A transactional producer. Once it was fenced, or a commit timed out, it is good for nothing more."""

    def __init__(self, clients: "MemoryClients", transactional_id: str) -> None:
        self.clients = clients
        self.broker = clients.broker
        self.name = transactional_id
        self.epoch: int | None = None
        self.transaction: Transaction | None = None
        self.broken = False

    def init_transactions(self, timeout: float = -1) -> None:
        self.epoch = self.broker.new_epoch(self.name)

    def begin_transaction(self) -> None:
        self._check()
        assert self.transaction is None, "the last transaction was not ended"
        self.transaction = Transaction()
        self.broker.transactional_id(self.name).transaction = self.transaction

    def produce(
        self,
        topic: str,
        value: bytes | str | None = None,
        key: bytes | str | None = None,
        partition: int = 0,
        timestamp: int = 0,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        record = {"value": value, "key": key, "timestamp": timestamp, "headers": headers}
        self._append(topic, partition, record)

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int = -1) -> int:
        for record in messages:
            assert record.keys() <= {"key", "value"}, f"produce_batch ignores what else is in {record.keys()}"
            self._append(topic, partition, record)
        return len(messages)

    def _append(self, topic: str, partition: int, record: dict[str, Any]) -> None:
        self._check()
        assert self.transaction is not None, "produced outside a transaction"
        self.broker.logs[topic, partition].append(record, self.broker.now_ms, self.transaction)

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Member, timeout: float = -1
    ) -> None:
        self._check()
        assert self.transaction is not None, "offsets sent outside a transaction"
        group = self.clients.groups[group_metadata.group]
        if group_metadata not in group.members:
            raise failure(KafkaError.ILLEGAL_GENERATION, "the group has gone on without this member")
        sent = self.transaction.offsets.setdefault(group.name, {})
        for place in positions:
            sent[place.topic, place.partition] = (place.offset, place.metadata or "")

    def commit_transaction(self, timeout: float = -1) -> None:
        self._check()
        transaction = self.transaction
        assert transaction is not None, "committed outside a transaction"
        entry = self.broker.transactional_id(self.name)
        fate = entry.fates.popleft() if entry.fates else None
        if fate is Fate.LATE:
            entry.late = transaction
        if fate in (None, Fate.COMMITTED):
            self.broker.end(transaction, Outcome.COMMITTED)
            self.transaction = None
        if fate is not None:
            self.broken = True
            raise failure(KafkaError._TIMED_OUT, f"the commit got no answer (it was {fate.value})")

    def _check(self) -> None:
        assert self.epoch is not None, "init_transactions comes first"
        if self.broken or self.epoch != self.broker.transactional_id(self.name).epoch:
            raise failure(KafkaError._FENCED, f"{self.name}: a newer producer has the id")


class MemoryClients:
    """The engine's `Clients` on one broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.groups: dict[str, Group] = {}

    def group(self, name: str) -> Group:
        """The group of a name, made when first asked for."""
        if name not in self.groups:
            self.groups[name] = Group(name, self.broker)
        return self.groups[name]

    def producer(self, transactional_id: str) -> MemoryProducer:
        return MemoryProducer(self, transactional_id)

    def consumer(self, group: str, worker: str) -> MemoryConsumer:
        return MemoryConsumer(self.broker, self.group(group), worker)

    def reader(self, ahead_bytes: int = 0) -> MemoryConsumer:
        return MemoryConsumer(self.broker, None, "")
