"""Which of several desks may publish: the member of the desk's consumer group that was given the one partition of `leads`.

The group hands it to another one when its holder leaves, or was silent for a session. That a former holder, woken from a pause,
publishes nothing stale is not left to this: the holder's producer fences it (`publisher`).
"""

from contextlib import closing
from threading import Event, Thread
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from app.engine.clients import HEARTBEAT_MAX_MS, REBALANCE_MS, KafkaClients, explained
from app.settings import Settings

_WAIT_S: Final = 0.2
_RETRY_S: Final = 1.0


class Lease:
    """Works from `start` to `stop`, and asks for the lease while it is told to. `term` grows with each time that it is given or
    taken away.
    """

    def __init__(self, settings: Settings, clients: KafkaClients) -> None:
        self.is_held = False
        self.term = 0
        self.trouble = ""
        self._settings, self._clients = settings, clients
        self._stop, self._wanted = Event(), Event()
        self._thread = Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begins; nothing is asked for yet."""
        self._thread.start()

    def ask(self, is_wanted: bool) -> None:
        """Joins the group, or leaves it: who could not publish at once must not keep others from it."""
        if is_wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    def stop(self) -> None:
        """Leaves the group, which hands the lease on at once."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._wanted.wait(_WAIT_S):
                continue
            try:
                with closing(self._clients.member(_properties(self._settings))) as consumer:
                    consumer.subscribe(
                        [self._settings.leads_topic], on_assign=self._given, on_revoke=self._taken, on_lost=self._taken
                    )
                    self._follow(consumer)
            except KafkaException as error:
                self.trouble = explained(error)
                self._stop.wait(_RETRY_S)
            self._taken()

    def _follow(self, consumer: Consumer) -> None:
        while self._wanted.is_set() and not self._stop.is_set():
            message = consumer.poll(_WAIT_S)
            error = message.error() if message is not None else None
            if error is not None and error.code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                raise KafkaException(error)

    def _given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)  # it is a token; its records are read elsewhere
            self.term += 1
            self.is_held = True

    def _taken(self, consumer: Consumer | None = None, partitions: list[TopicPartition] | None = None) -> None:
        if consumer is not None and partitions:
            consumer.incremental_unassign(partitions)
        if self.is_held:
            self.is_held = False
            self.term += 1


def _properties(settings: Settings) -> dict[str, Any]:
    return {
        "group.id": settings.desk_group,
        "client.id": f"{settings.worker_id}-desk",
        "enable.auto.commit": False,
        "auto.offset.reset": "latest",
        # sticky: who holds it keeps it when another one comes
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": min(settings.session_timeout_ms // 6, HEARTBEAT_MAX_MS),
        "max.poll.interval.ms": max(REBALANCE_MS, settings.session_timeout_ms),
    }
