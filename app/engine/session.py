"""One membership of a consumer group with one transactional producer: assignment, reopening, transactions.

Whatever goes wrong ends the session; the worker begins a new one. A new producer with the same transactional id ends
what the old one left open, a new membership proves who owns what, and `reopen` reads from the ledger and the group how
far the last batch got. So a timed-out commit, a fenced producer, a lost Redis reply and a crash are one case.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from app.columns.table import StateDamaged
from app.engine import ledger
from app.engine.clients import Clients
from app.engine.failpoint import passing
from app.engine.fold import Command, Fold, Stage
from app.engine.keys import find_keys
from app.engine.owned import Owned, in_runs
from app.engine.state import StateOutdated, StateRefused
from app.engine.store import Store
from app.settings import Settings

_HELD_BATCHES = 2  # so many may wait for another topic, of each topic of all partitions


class SessionEnded(Exception):
    """Ownership or a transaction is in doubt; begin a new session, which settles it. `cause`: one of the catalogue's, for who
    counts them.
    """

    def __init__(self, why: str, cause: str = "kafka") -> None:
        super().__init__(why)
        self.cause = cause


class Lag(NamedTuple):
    """How far the owned partitions are behind: records, the time (epoch ms) of the oldest one (None: none waits, or it is
    not known yet), and the largest share of what a log still holds, where retention has deleted anything.
    """

    records: int
    oldest_ms: int | None
    retention_ratio: float


class Reading(NamedTuple):
    """What a stage reads: the group, and the input topics, the leading one first. Its partitions are what the group
    hands out.
    """

    group: str
    topics: tuple[str, ...]
    published_topics: dict[
        str, int
    ]  # read back when state was lost; each so much further (ms) than what may still change
    marks_topic: str | None = None  # tells which offsets each published batch took
    share: int = 1  # a batch has at most max_batch_bytes / share
    slice_records: int = 2_000  # a call to consume takes so many, so that a batch's bytes are looked at often enough


class Session:
    """Consumer, producer, and the partitions owned. Not thread-safe; raises `SessionEnded`, `StoreUnavailable` or
    `StateRefused`.
    """

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        store: Store,
        clients: Clients,
        reading: Reading,
        worker: str,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.beat = beat  # called while something goes on for long, so that nobody takes this worker for dead
        self.settings = settings
        self.stage = stage
        self.store = store
        self.reading = reading
        self.owned: dict[int, Owned] = {}
        self.stored: dict[int, dict[str, int]] = {}  # the offsets in each owned partition's ledger
        self.failure: BaseException | None = None
        self.folded = 0  # records carried through all steps
        self.closed_at = time.monotonic()  # when the last batch was read in full
        self.late_s = 0.0  # how old its newest event was when it was done; 0 where the next one is not to wait for more
        self.unsettled: str | None = None  # what becomes of the transaction at hand if the session ends now
        self.partitions = 0  # of each input topic
        self.timeout_s = settings.request_timeout_ms / 1000
        self.clients = clients
        self.producer = clients.producer(f"{reading.group}-{worker}")
        self.consumer = clients.consumer(reading.group, worker)

    def start(self) -> None:
        """Ends what a former producer of this worker left open, and joins the group."""
        self._kafka(self.producer.init_transactions, self.timeout_s * 3)
        topics = self.consumer.list_topics(timeout=self.timeout_s).topics
        counts = {
            topic: len(topics[topic].partitions)
            for topic in self.reading.topics
            if topic in topics and not topics[topic].error
        }
        missing = [topic for topic in self.reading.topics if topic not in counts]
        if missing:
            raise StateRefused(
                f"no such topic: {', '.join(missing)}; run `onecount topics create`, or give the right to describe it"
            )
        if len(set(counts.values())) != 1:
            raise StateRefused(
                f"input topics differ in their partition counts ({counts}), so a user would have several owners; make them equal"
            )
        self.partitions = next(iter(counts.values()))
        self.consumer.subscribe(
            [self.reading.topics[0]], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def close(self) -> None:
        """Leaves the group, so that the next owner need not wait for the session timeout, and ends both clients."""
        for partition in list(self.owned):
            self._drop(partition)
        self.consumer.close()
        # The consumer's callbacks refer back to this session, and collections of old objects are rare: without this each session
        # that ends would leave a producer with its threads, which goes on sending.
        del self.producer, self.consumer

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        # an exception here would leave librdkafka without an assignment: keep it, assign, and raise from `poll`
        places = []
        for leading in assigned:
            places += self._reopened(leading.partition)
        if self.settings.is_eager:
            consumer.assign(places)
        else:
            consumer.incremental_assign(places)
        if places:
            consumer.resume(places)  # one may have been taken away while it was paused

    def _reopened(self, partition: int) -> list[TopicPartition]:
        try:
            if self.failure is None or isinstance(
                self.failure, StateRefused
            ):  # so that all that is wrong is told at once
                self.reopen(partition)
                return [
                    TopicPartition(topic, partition, offset) for topic, offset in self.owned[partition].read.items()
                ]
        except StateRefused as error:
            same = type(error) if type(error) is type(self.failure) else StateRefused
            self.failure = error if self.failure is None else same(f"{self.failure}; {error}")
        except BaseException as error:  # noqa: BLE001 - raised again from `poll`
            self.failure = error
        return [TopicPartition(topic, partition) for topic in self.reading.topics]

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        for leading in revoked:
            self._drop(leading.partition)
        if self.settings.is_eager:
            consumer.unassign()
        else:
            consumer.incremental_unassign(
                [TopicPartition(topic, leading.partition) for leading in revoked for topic in self.reading.topics]
            )

    def _drop(self, partition: int) -> None:
        self.owned.pop(partition, None)
        self.stored.pop(partition, None)
        self.stage.close(partition)

    def reopen(self, partition: int) -> None:
        """Takes a partition over: fences the former owner, and finds out from the ledger and the group how to go on."""
        self.beat()
        if partition >= self.partitions:
            raise SessionEnded("the input has more partitions than when this session began", "topics")
        key = ledger.ledger_key(self.stage.tag, partition)
        taken = ledger.read_ledger(self.store.run(ledger.take_commands(key)))  # 1. the epoch, 2. M
        places = [TopicPartition(topic, partition) for topic in self.reading.topics]
        found = self._kafka(self._committed, places)  # 3. C, waiting for open transactions
        committed = {place.topic: place.offset if place.offset >= 0 else None for place in found}
        log = {place.topic: self._kafka(self.consumer.get_watermark_offsets, place, self.timeout_s) for place in places}
        begun = {
            place.topic: int(place.metadata) if (place.metadata or "").isdigit() else None for place in found
        }  # see `publish`
        opening = ledger.decide(taken, partition, self.partitions, committed, begun, log, self.reading.group)  # 4.
        discarded: Exception | None = None
        try:
            ledger.refuse_torn(taken, key)
            self.stage.open(partition, taken.view if taken.offsets else None, self.run)
        except (StateOutdated, StateDamaged) as error:
            discarded = error
            taken = self._forget(partition, taken.epoch)
            opening = ledger.decide(taken, partition, self.partitions, committed, begun, log, self.reading.group)
            self.stage.open(partition, None, self.run)
        owned = Owned(taken.epoch, opening.mode, dict(opening.offsets), committed, self.stage.span_ms)
        owned.first = {topic: begins for topic, (begins, _) in log.items()}
        # an empty topic's end is told behind all that was fetched before
        owned.at_end = {topic for topic, (_, end) in log.items() if owned.read[topic] >= end}
        owned.by_hand = {place.topic for place in found if place.offset >= 0 and not place.metadata}
        owned.discarded = discarded
        owned.written = taken.written
        # what is in the state already need not be in the log any more
        owned.is_proven = bool(taken.offsets) and not owned.by_hand
        self.owned[partition] = owned
        self.stored[partition] = dict(taken.offsets)
        passing("reopened")

    def _committed(self, places: list[TopicPartition]) -> list[TopicPartition]:
        try:
            return self.consumer.committed(places, self.timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._TIMED_OUT:
                raise
            raise SessionEnded(
                f"Kafka: {error.args[0].str()}; if this goes on, a transaction holds the offsets of group {self.reading.group}"
                " back that Kafka never ended: see `A transaction that never ends` in docs/runbook.md"
            ) from error

    def confirm_offsets(self, partitions: Sequence[int]) -> None:
        """Asks the group for C once more. Ends the session where it is another one: Kafka's coordinator (4.2 at least), if it
        moves away and back while it loads, answers with what it has read so far.
        """
        places = [TopicPartition(topic, partition) for partition in partitions for topic in self.reading.topics]
        for place in self._kafka(self._committed, places):
            said = self.owned[place.partition].committed[place.topic]
            if place.offset != (OFFSET_INVALID if said is None else said):
                raise SessionEnded(
                    f"the group {self.reading.group} said that {place.topic}/{place.partition} was counted up to {said}, and now {place.offset}"
                )
        for partition in partitions:
            self.owned[partition].is_confirmed = True

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """As the store's, for what asks it many times over: each answer is a sign of life."""
        self.beat()
        return self.store.run(commands)

    def _forget(self, partition: int, epoch: int) -> ledger.Ledger:
        """Empties a partition's state but for its epoch, so that it is rebuilt; the ledger that is left."""
        key = ledger.ledger_key(self.stage.tag, partition)
        keys = find_keys(self.store, key.removesuffix("ledger") + "*") - {key.encode()}
        found, names = self.store.run([("UNWATCH",), ("WATCH", key), ("HGET", key, "epoch"), ("HKEYS", key)])[2:]
        commands: list[ledger.Command] = [("HDEL", key, *(name for name in names if name != b"epoch"))]
        if keys:
            commands.append(("UNLINK", *sorted(keys)))
        if found is None or int(found) != epoch or not self.store.guarded_write(commands):
            raise SessionEnded(
                f"another worker took partition {partition} over while its state was emptied", "ownership"
            )
        return ledger.Ledger(epoch, None, {}, None, False)

    def poll(self, count: int, timeout_s: float) -> tuple[int, int]:
        """Consumes up to `count` records, in at most `timeout_s`, into their partitions' pending ones. How many messages came, and their
        bytes: news of a partition's end are messages too, so fewer than `count` means that no more were at hand.
        """
        messages = self._kafka(self.consumer.consume, count, timeout_s)
        if self.failure is not None:
            raise self.failure
        for topic, partition, failed, run in in_runs(messages):
            owned = self.owned.get(partition)
            if failed:
                self._look_at_errors(run, owned)
            elif owned is not None:  # else it was fetched before the partition was taken away
                owned.add(topic, run)
        self.hold_back([partition for partition, owned in self.owned.items() if owned.waits()])
        return len(messages), sum(map(len, messages))

    def hold_back(self, partitions: Iterable[int]) -> None:
        """Stops fetching a topic that is far ahead of another one of its partition, until that one has come after. To be called for
        partitions of which all that may be folded was taken: what a paused topic has fetched is fetched again.
        """
        most = _HELD_BATCHES * self.settings.max_batch_events // max(len(self.owned), 1)
        for partition in partitions:
            ahead, reached = self.owned[partition].hold_back(most)
            if ahead:
                self.consumer.pause([TopicPartition(topic, partition) for topic in ahead])
            if reached:
                self.consumer.resume([TopicPartition(topic, partition) for topic in reached])

    def _look_at_errors(self, messages: Iterable[Message], owned: Owned | None) -> None:
        for message in messages:
            error = message.error()
            place = f"{message.topic()}/{message.partition()}"
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise SessionEnded(f"{place}: {error.str()}")  # `reopen` finds out why, and refuses
            if error.code() != KafkaError._PARTITION_EOF:
                raise SessionEnded(f"consuming {place}: {error}")
            if owned is not None:
                owned.at_end.add(message.topic())

    def lag(self) -> Lag:
        """How far behind the owned partitions are, as far as the client knows."""
        records, oldest_ms, ratio = 0, inf, 0.0
        for partition, owned in self.owned.items():
            for topic, offset in owned.read.items():
                place = TopicPartition(topic, partition)
                first, end = self.consumer.get_watermark_offsets(place, cached=True)
                first = max(first, owned.first.get(topic, 0))
                waiting = owned.held(topic) + (max(end - offset, 0) if topic not in owned.at_end else 0)
                if not waiting:
                    continue
                records += waiting
                since_ms = owned.oldest_ms(topic)
                oldest_ms = oldest_ms if since_ms is None else min(oldest_ms, since_ms)
                if 0 < first < end:
                    ratio = max(ratio, min(waiting / (end - first), 1.0))
        return Lag(records, None if oldest_ms == inf else int(oldest_ms), ratio)

    def watch(self, partitions: Sequence[int]) -> None:
        """Guards this batch's write: it will fail if anyone raises one of these epochs from here on.

        The offsets are compared too: a replica that became master without its last writes may have lost the raise of an
        epoch, but no batch is folded on a state that is not the one it follows.
        """
        keys = [ledger.ledger_key(self.stage.tag, partition) for partition in partitions]
        self._compare(partitions, [("UNWATCH",), ("WATCH", *keys)])

    def confirm(self, partitions: Sequence[int]) -> None:
        """Looks whether the ledgers are as this worker left them. Between reading and publishing, this keeps what was folded
        on a state that was emptied meanwhile from being published: its repeats would not have been recognised.
        """
        self._compare(partitions, [])

    def _compare(self, partitions: Sequence[int], before: list[ledger.Command]) -> None:
        """In one round trip: runs the commands `before`, and ends the session if a ledger is not as this worker left it."""
        fields = ("epoch", *(ledger.NEXT + topic for topic in self.reading.topics))
        reads = [("HMGET", ledger.ledger_key(self.stage.tag, partition), *fields) for partition in partitions]
        replies = self.store.run([*before, *reads])[len(before) :]
        for partition, found in zip(partitions, replies, strict=True):
            epoch, *offsets = (None if value is None else int(value) for value in found)
            if epoch != self.owned[partition].epoch:
                raise SessionEnded(
                    f"partition {partition} was taken over by another worker, or its state was emptied", "ownership"
                )
            stored = self.stored[partition]
            if offsets != [stored.get(topic) for topic in self.reading.topics]:
                raise SessionEnded(
                    f"partition {partition}: its state is not what this worker left: Redis lost writes, or another worker wrote",
                    "ownership",
                )

    def publish(self, fold: Fold, offsets: dict[int, dict[str, int]]) -> None:
        """One transaction: the outputs, and the input offsets of the partitions whose outputs they are."""
        passing("folded")
        self._kafka(self.producer.begin_transaction)
        self.unsettled = "aborted"
        passing("transaction_begun")
        for (topic, partition), records in fold.outputs.items():
            self._produce(topic, partition, records)
        passing("produced")
        places = [  # with each offset goes where its batch began, by which `reopen` knows whether it misses one batch or more
            TopicPartition(topic, partition, offset, metadata=str(self.owned[partition].next[topic]))
            for partition, found in offsets.items()
            for topic, offset in found.items()
        ]
        if places:
            # the metadata is asked for anew: a rebalance since would fence this transaction
            self._kafka(
                self.producer.send_offsets_to_transaction,
                places,
                self.consumer.consumer_group_metadata(),
                self.timeout_s,
            )
        passing("offsets_sent")
        self.unsettled = "ambiguous"
        self._kafka(self.producer.commit_transaction, self.timeout_s)
        self.unsettled = None
        passing("committed")

    def _produce(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        # produce_batch knows neither headers nor times nor, in spite of its documentation, a partition for each record
        plain = [record for record in records if "headers" not in record]
        if plain and self.producer.produce_batch(topic, plain, partition=partition) != len(plain):
            failed = next(record["_error"] for record in plain if "_error" in record)
            raise SessionEnded(f"producing to {topic}: {failed}")
        for record in records:
            if "headers" in record:
                self._kafka(self.producer.produce, topic, partition=partition, **record)

    def write(self, fold: Fold, offsets: dict[int, dict[str, int]], rebuilding: set[int]) -> None:
        """Moves the state in Redis and the ledgers in one MULTI, if this worker still owns them."""
        commands = []
        for partition, found in offsets.items():
            key = ledger.ledger_key(self.stage.tag, partition)
            commands.append(ledger.begin_command(key))
            commands += fold.writes.get(partition, [])
            commands += ledger.write_commands(
                *(key, self.partitions, self.owned[partition].written + 1),
                *(found, fold.views.get(partition), partition in rebuilding),
            )
        if not self.store.guarded_write(commands):
            raise SessionEnded("another worker took a partition over while its batch was written", "ownership")
        for partition, found in offsets.items():
            self.owned[partition].next.update(found)
            self.owned[partition].written += 1
            self.stored[partition].update(found)
        passing("state_written")

    def _kafka(self, call: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except (KafkaException, BufferError) as error:
            raise SessionEnded(f"Kafka: {error}") from error
