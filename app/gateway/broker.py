"""The way into Kafka: an idempotent producer whose acknowledgements are waited for, or not, with a bound on what waits.

Everything happens on the event loop: the producer is polled from it, so its callbacks run there and nothing needs a lock.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.gateway.admission import Record
from app.publish.producer import PARTITIONERS
from app.settings import Settings

BUSY_S: Final = 0.001  # between two looks for acknowledgements while somebody waits for them
IDLE_S: Final = 0.025
PROBE_S: Final = 1.0  # between two looks whether Kafka is back
PROBE_TIMEOUT_S: Final = 2.0
_log = structlog.get_logger()


class Broker:
    """One producer. `room`: how many records may wait for their acknowledgement. `patience_ms`: a record that is not
    acknowledged within it counts as not taken; it may yet be in Kafka, where a repeat of it is dropped by its event id.
    `linger_ms`: how long records are gathered for one request to Kafka.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partitioner: str,
        room: int,
        patience_ms: int,
        linger_ms: int,
        logger: Any,
    ) -> None:
        self._properties = settings.client(
            **{
                "client.id": "onecount-gateway",
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": PARTITIONERS[partitioner],
                "compression.type": "lz4",
                "linger.ms": linger_ms,
                "batch.num.messages": 10_000,
                "message.timeout.ms": patience_ms,
                "queue.buffering.max.messages": 2 * room,
                "queue.buffering.max.kbytes": 262_144,
                "error_cb": self._complain,
            }
        )
        self._topic, self._room, self._logger = topic, room, logger
        self._loop = asyncio.get_running_loop()
        self._producer = self._open()
        self.waiting = 0
        self.lost = 0  # posted records that were never acknowledged
        self.is_down = False  # a record was not acknowledged, and Kafka has not answered since
        self._probing: asyncio.Task[None] | None = None
        self._is_broken = False
        self._timer = self._loop.call_later(IDLE_S, self._poll)
        self._is_busy = False
        self._awaited = 0  # records whose acknowledgement somebody waits for

    def _open(self) -> Producer:
        return Producer(self._properties, logger=self._logger)

    def has_room(self, count: int) -> bool:
        """Whether so many more records may wait. While Kafka is down one request at a time finds out whether it still is."""
        return self.waiting + count <= self._room and not (self.is_down and self.waiting)

    async def send(self, records: Sequence[Record]) -> list[bool]:
        """Sends the records and waits; which of them all in-sync replicas have."""
        taken = [False] * len(records)
        if not records:
            return taken
        answer = self._loop.create_future()
        left = len(records)

        def done(index: int, error: KafkaError | None, message: Message | None) -> None:
            nonlocal left
            self._report(error)
            self._awaited -= 1
            taken[index] = error is None
            left -= 1
            if not left and not answer.done():
                answer.set_result(taken)

        for index, record in enumerate(records):
            failure = self._produce(record, partial(done, index))
            if failure is None:
                self._awaited += 1
            else:
                left -= 1
        self._hurry()
        if left:
            await answer
        return taken

    def post(self, record: Record) -> bool:
        """Sends a record that nobody waits for; False if there is no room for it."""
        return self.waiting < self._room and self._produce(record, self._posted) is None

    def _posted(self, error: KafkaError | None, message: Message | None) -> None:
        self._report(error)
        if error is not None:
            self.lost += 1

    def _produce(self, record: Record, on_delivery: Any) -> Exception | None:
        try:
            self._producer.produce(
                self._topic, record.value, record.key, timestamp=record.time_ms, on_delivery=on_delivery
            )
        except (BufferError, KafkaException) as error:
            return error
        self.waiting += 1
        return None

    def _hurry(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._timer.cancel()
            self._timer = self._loop.call_later(BUSY_S, self._poll)

    def _report(self, error: KafkaError | None) -> None:
        self.waiting -= 1
        if error is None:
            self._is_back()
        elif not self.is_down:
            self.is_down = True
            if self._probing is None or self._probing.done():
                self._probing = self._loop.create_task(self._probe())
            self._tell(_log.warning, "Kafka does not acknowledge: events are refused until it does", why=error.str())

    def _is_back(self) -> None:
        if self.is_down:
            self.is_down = False
            self._tell(_log.info, "Kafka takes events again")

    def _tell(self, log: Callable[..., None], line: str, **values: str) -> None:
        """Logs in a turn of its own: a line that can't be written must not end the callback that has it to tell."""
        self._loop.call_soon(partial(log, line, **values))

    async def _probe(self) -> None:
        """A gateway that a load balancer has taken out sends nothing, so no acknowledgement would tell that Kafka is back."""
        while self.is_down:
            await asyncio.sleep(PROBE_S)
            if not self.waiting and await asyncio.to_thread(self._has_leaders) and not self.waiting:
                self._is_back()

    def _has_leaders(self) -> bool:
        """Whether Kafka answers, and knows of each of the topic's partitions who takes records for it."""
        try:
            found = self._producer.list_topics(self._topic, PROBE_TIMEOUT_S).topics.get(self._topic)
        except KafkaException:
            return False
        return found is not None and not found.error and all(each.leader >= 0 for each in found.partitions.values())

    def _poll(self) -> None:
        try:
            self._producer.poll(0)
            if self._is_broken:
                self._renew()
        finally:  # nothing that a callback raises may end the polling
            self._is_busy = self._awaited > 0
            self._timer = self._loop.call_later(BUSY_S if self._is_busy else IDLE_S, self._poll)

    def _complain(self, error: KafkaError) -> None:
        self._is_broken = self._is_broken or error.fatal()

    def _renew(self) -> None:
        """A fatal error ends an idempotent producer: what waits in it is told as not taken, and a new one goes on."""
        self._is_broken = False
        self._tell(_log.error, "the producer ended, and begins anew")
        self._producer.purge()
        try:
            self._producer.flush(1)
        finally:
            self._producer = self._open()

    async def close(self, timeout_s: float) -> int:
        """Waits until all that was sent is acknowledged; how many records are not after `timeout_s`."""
        deadline_s = self._loop.time() + timeout_s
        while self.waiting and self._loop.time() < deadline_s:
            await asyncio.sleep(BUSY_S * 10)
        self._timer.cancel()
        if self._probing is not None:
            self._probing.cancel()
        return self.waiting
